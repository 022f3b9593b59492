"""Evaluation: quality on the test set, the flag's false-alarm rate, and unfamiliar images.

Everything is computed from member logits, so that the posterior and its baselines are judged by the
same lines. Nothing here is fitted: unfamiliar sets are only reported on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.conformal import ConformalTest
from models.detectors import Detectors, ensemble_scores
from models.policy import Policy, reasons_to_abstain
from models.shape import Pixels
from models.uncertainty import Array, Prediction, summarise
from training import metrics

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]

ALPHAS = (0.05, 0.01, 0.001)


@dataclass(frozen=True)
class Answers:
    """What an ensemble and its detectors say of one set of n images, averaged over members once.

    Attributes:
        prediction: probabilities and entropies.
        scores: every detector's score, [n].
        choices: each member's class, [n, M].
    """

    prediction: Prediction
    scores: dict[str, Array]
    choices: NDArray[np.int64]

    @classmethod
    def of(cls, logits: Logits) -> Answers:
        """From member logits [n, M, K] alone, with the scores of the ensemble alone."""
        prediction = summarise(logits)
        return cls(prediction, ensemble_scores(prediction), logits.argmax(axis=2))

    @classmethod
    def detected(cls, logits: Logits, pixels: Pixels, detectors: Detectors) -> Answers:
        """From member logits [n, M, K] and grey values [n, H, W], with all detectors' scores."""
        prediction = summarise(logits)
        return cls(prediction, detectors.scores(prediction, pixels), logits.argmax(axis=2))


def quality(answers: Answers, labels: Labels) -> dict[str, float]:
    """Accuracy, NLL (nats), ECE over 15 bins, Brier score and AURC, and mean entropies (nats)."""
    prediction = answers.prediction
    return {
        "accuracy": metrics.accuracy(prediction.probabilities, labels),
        "member_accuracy": float((answers.choices == labels[:, None]).mean()),
        "nll": metrics.negative_log_likelihood(prediction.probabilities, labels),
        "ece": metrics.calibration_error(prediction.probabilities, labels),
        "brier": metrics.brier(prediction.probabilities, labels),
        "aurc": metrics.aurc(prediction.probabilities, labels),
        "predictive_entropy": float(prediction.predictive_entropy.mean()),
        "mutual_information": float(prediction.mutual_information.mean()),
    }


def flag_rates(tests: Mapping[str, ConformalTest], answers: Answers) -> dict[str, dict[str, float]]:
    """Share of images flagged at each α, for each detector."""
    p_values = {name: test.p_values(answers.scores[name]) for name, test in tests.items()}
    return {
        name: {str(alpha): float((values <= alpha).mean()) for alpha in ALPHAS}
        for name, values in p_values.items()
    }


def separation(familiar: Answers, unfamiliar: Answers) -> dict[str, dict[str, float]]:
    """AUROC, FPR95 and FPR99 of each detector; FPR is the share of unfamiliar images accepted."""
    pairs = {name: (familiar.scores[name], unfamiliar.scores[name]) for name in familiar.scores}
    return {
        name: {
            "auroc": metrics.auroc(known, foreign),
            "fpr95": metrics.missed_at(known, foreign, 0.95),
            "fpr99": metrics.missed_at(known, foreign, 0.99),
        }
        for name, (known, foreign) in pairs.items()
    }


def gate(
    policy: Policy, p_values: Array, answers: Answers, labels: Labels | None
) -> dict[str, float | None]:
    """What a policy does: share accepted and, with labels, the error among the accepted.

    Args:
        policy: the policy.
        p_values: of the detector that raises the flag, [n].
        answers: of the ensemble.
        labels: [n], or None for images of no class.
    """
    probabilities = answers.prediction.probabilities
    reasons = reasons_to_abstain(policy, probabilities, p_values)
    accepted = np.array([not reason for reason in reasons])
    errors = None
    if labels is not None and accepted.any():
        errors = float((probabilities.argmax(axis=1) != labels)[accepted].mean())
    return {"accepted": float(accepted.mean()), "error_among_accepted": errors}


def evaluate(
    tests: Mapping[str, ConformalTest],
    score: str,
    policies: Mapping[str, Policy],
    test: tuple[Answers, Labels],
    ood: Mapping[str, Answers],
    shift: Mapping[str, tuple[Answers, Labels]],
) -> dict[str, Any]:
    """All figures of one ensemble, ready for JSON.

    Args:
        tests: the conformal test of each detector.
        score: the detector that raises the flag, where a policy names none.
        policies: named policies.
        test: answers on the test set, and its labels [n].
        ood: answers on unfamiliar sets.
        shift: answers on sets with the same classes, seen otherwise, and their labels.
    """
    familiar, labels = test

    def flags(answers: Answers, truth: Labels | None) -> dict[str, Any]:
        def judged(policy: Policy) -> dict[str, float | None]:
            name = policy.score or score
            p_values = tests[name].p_values(answers.scores[name])
            return gate(policy, p_values, answers, truth)

        return {
            "flag_rate": flag_rates(tests, answers),
            "policies": {name: judged(policy) for name, policy in policies.items()},
        }

    def known(answers: Answers, truth: Labels) -> dict[str, Any]:
        return {**quality(answers, truth), **flags(answers, truth)}

    def foreign(answers: Answers) -> dict[str, Any]:
        return {"separation": separation(familiar, answers), **flags(answers, None)}

    return {
        "test": known(familiar, labels),
        "ood": {name: foreign(answers) for name, answers in ood.items()},
        "shift": {name: known(answers, truth) for name, (answers, truth) in shift.items()},
    }
