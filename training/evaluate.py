"""Evaluation: quality on the test set, the flag's false-alarm rate, and unfamiliar images.

Everything is computed from member logits, so that the posterior and its baselines are judged by the
same lines. Nothing here is fitted: unfamiliar sets are only reported on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.calibration import Calibration
from models.conformal import ConformalTest
from models.detectors import Detectors, ensemble_scores
from models.outputs import Ensemble, Outputs
from models.policy import Policy, Reason
from models.prediction_sets import PredictionSets
from models.preprocessing import InputSpec, grey, prepare
from models.shape import Pixels
from models.uncertainty import Array, Prediction, summarise
from training import metrics

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]

ALPHAS = (0.05, 0.01, 0.001)
RISKS = (0.001, 0.01)


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
    def detected(cls, outputs: Outputs, pixels: Pixels, detectors: Detectors) -> Answers:
        """From outputs and grey values [n, H, W] of n images, with all detectors' scores."""
        prediction = summarise(outputs.logits)
        scores = detectors.scores(prediction, outputs.features, pixels)
        return cls(prediction, scores, outputs.logits.argmax(axis=2))

    @classmethod
    def seen(
        cls, images: NDArray[np.uint8], spec: InputSpec, ensemble: Ensemble, detectors: Detectors
    ) -> Answers:
        """What an ensemble and its detectors say of images as they come, [n, H, W, C]."""
        prepared, _ = prepare(images, spec)
        return cls.detected(ensemble(prepared), grey(prepared, spec), detectors)

    @property
    def classes(self) -> Labels:
        """The predicted classes, [n]."""
        classes: Labels = self.prediction.probabilities.argmax(axis=1)
        return classes

    def reasons(self, calibration: Calibration, policy: Policy) -> list[tuple[Reason, ...]]:
        """Why a policy abstains on each image; an empty tuple means accept."""
        return calibration.reasons(policy, self.prediction.probabilities, self.scores)


def quality(answers: Answers, labels: Labels) -> dict[str, float]:
    """Accuracy, NLL (nats), ECE over 15 bins, Brier score, AURC and AUGRC, and mean entropies.

    `coverage_at_R` is the largest share of images, ranked by max p, among which the error is ≤ R;
    entropies are in nats.
    """
    prediction = answers.prediction
    coverages = {
        f"coverage_at_{risk}": metrics.coverage_at_risk(prediction.probabilities, labels, risk)
        for risk in RISKS
    }
    return {
        "accuracy": metrics.accuracy(prediction.probabilities, labels),
        "member_accuracy": float((answers.choices == labels[:, None]).mean()),
        "nll": metrics.negative_log_likelihood(prediction.probabilities, labels),
        "ece": metrics.calibration_error(prediction.probabilities, labels),
        "brier": metrics.brier(prediction.probabilities, labels),
        "aurc": metrics.aurc(prediction.probabilities, labels),
        "augrc": metrics.augrc(prediction.probabilities, labels),
        **coverages,
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


def class_flag_rates(
    calibration: Calibration, answers: Answers
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Share of the images predicted as each class that the bundle's flag is raised on, at each α.

    Returns:
        `marginal`: by p-values over all calibration images, `class`: by those within the class;
        None for a class that no image is taken for. Classes are numbered as the labels are.
    """
    scores, classes = answers.scores[calibration.score], answers.classes
    p_values = {
        "marginal": calibration.tests[calibration.score].p_values(scores),
        "class": calibration.class_tests[calibration.score].p_values(scores, classes),
    }
    members = {
        str(label): classes == label for label in range(answers.prediction.probabilities.shape[1])
    }
    return {
        kind: {
            str(alpha): {
                label: float((values[mine] <= alpha).mean()) if mine.any() else None
                for label, mine in members.items()
            }
            for alpha in ALPHAS
        }
        for kind, values in p_values.items()
    }


def set_figures(sets: PredictionSets, answers: Answers, labels: Labels) -> dict[str, float]:
    """Share of prediction sets that hold the label, and the mean number of labels in a set."""
    inside = sets.sets(answers.prediction.probabilities)
    return {
        "coverage": float(inside[np.arange(len(labels)), labels].mean()),
        "mean_size": float(inside.sum(axis=1).mean()),
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
    reasons: Sequence[tuple[Reason, ...]], answers: Answers, labels: Labels | None
) -> dict[str, float | None]:
    """What a policy does: share accepted and, with labels, the error among the accepted.

    Args:
        reasons: why it abstains on each of n images (`models.policy`).
        answers: of the ensemble.
        labels: [n], or None for images of no class.
    """
    accepted = np.array([not reason for reason in reasons])
    errors = None
    if labels is not None and accepted.any():
        errors = float((answers.classes != labels)[accepted].mean())
    return {"accepted": float(accepted.mean()), "error_among_accepted": errors}


def evaluate(
    calibration: Calibration,
    sets: PredictionSets | None,
    policies: Mapping[str, Policy],
    test: tuple[Answers, Labels],
    ood: Mapping[str, Answers],
    shift: Mapping[str, tuple[Answers, Labels]],
) -> dict[str, Any]:
    """All figures of one ensemble, ready for JSON.

    Args:
        calibration: the conformal tests of each detector.
        sets: the prediction sets, if there are any.
        policies: named policies.
        test: answers on the test set, and its labels [n].
        ood: answers on unfamiliar sets.
        shift: answers on sets with the same classes, seen otherwise, and their labels.
    """
    familiar, labels = test

    def flags(answers: Answers, truth: Labels | None) -> dict[str, Any]:
        return {
            "flag_rate": flag_rates(calibration.tests, answers),
            "policies": {
                name: gate(answers.reasons(calibration, policy), answers, truth)
                for name, policy in policies.items()
            },
        }

    def known(answers: Answers, truth: Labels) -> dict[str, Any]:
        figures = {**quality(answers, truth), **flags(answers, truth)}
        if sets is not None:
            figures["prediction_sets"] = set_figures(sets, answers, truth)
        return figures

    def foreign(answers: Answers) -> dict[str, Any]:
        return {"separation": separation(familiar, answers), **flags(answers, None)}

    return {
        "test": {
            **known(familiar, labels),
            "class_flag_rate": class_flag_rates(calibration, familiar),
        },
        "ood": {name: foreign(answers) for name, answers in ood.items()},
        "shift": {name: known(answers, truth) for name, (answers, truth) in shift.items()},
    }
