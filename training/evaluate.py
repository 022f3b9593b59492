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
from models.policy import Policy, Reason, reasons_to_abstain
from models.prediction_sets import PredictionSets
from models.preprocessing import InputSpec, grey, prepare
from models.settling import serve
from models.shape import Pixels
from models.uncertainty import Array, Prediction, softmax, summarise
from training import metrics

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]

ALPHAS = (0.05, 0.01, 0.001)
RISKS = (0.001, 0.01)


@dataclass(frozen=True)
class Answers:
    """What an ensemble and its detectors say of one set of n images, averaged over members once.

    Attributes:
        prediction: probabilities and entropies, of all members.
        scores: every detector's score, [n].
        choices: each member's class, [n, M].
        totals: sums of the probabilities of the first group of members, the first two and so on,
            [n, M / group, K].
        group: members in a group.
    """

    prediction: Prediction
    scores: dict[str, Array]
    choices: NDArray[np.int64]
    totals: Array
    group: int

    @classmethod
    def of(cls, logits: Logits) -> Answers:
        """From member logits [n, M, K] alone, as one group, with its own scores alone."""
        prediction, group = summarise(logits), logits.shape[1]
        scores, choices = ensemble_scores(prediction), logits.argmax(axis=2)
        return cls(prediction, scores, choices, _totals(logits, group), group)

    @classmethod
    def detected(cls, outputs: Outputs, pixels: Pixels, detectors: Detectors) -> Answers:
        """From outputs and grey values [n, H, W] of n images, with all detectors' scores."""
        logits, group = outputs.logits, outputs.features.shape[1]
        scores = detectors.scores(summarise(logits[:, :group]), outputs.features, pixels)
        totals = _totals(logits, group)
        return cls(summarise(logits), scores, logits.argmax(axis=2), totals, group)

    @classmethod
    def seen(
        cls, images: NDArray[np.uint8], spec: InputSpec, ensemble: Ensemble, detectors: Detectors
    ) -> Answers:
        """What an ensemble and its detectors say of images as they come, [n, H, W, C]."""
        prepared, _ = prepare(images, spec)
        return cls.detected(ensemble(prepared), grey(prepared, spec), detectors)

    @property
    def classes(self) -> Labels:
        """The classes that all members predict, [n]."""
        classes: Labels = self.prediction.probabilities.argmax(axis=1)
        return classes

    @property
    def first(self) -> Array:
        """Mean probabilities of the first group of members, [n, K]."""
        return self.totals[:, 0] / self.group

    @property
    def first_classes(self) -> Labels:
        """The classes that the first group of members predicts, [n]."""
        classes: Labels = self.first.argmax(axis=1)
        return classes

    def decide(self, calibration: Calibration, policy: Policy) -> Decisions:
        """What a policy makes of the images."""
        own, classes = self.scores[calibration.detector(policy)], self.first_classes
        p_values, level = calibration.p_values(policy, own, classes), calibration.level(policy)
        served = serve(policy, self.totals, self.group, p_values <= level)
        reasons = reasons_to_abstain(policy, served.probabilities, p_values, level)
        return Decisions(reasons, served.probabilities.argmax(axis=1), served.members)


@dataclass(frozen=True)
class Decisions:
    """What a policy makes of n images.

    Attributes:
        reasons: why it abstains on each; an empty tuple means accept.
        classes: the label of each, [n].
        members: that each was shown to, [n].
    """

    reasons: Sequence[tuple[Reason, ...]]
    classes: Labels
    members: Labels

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """Whether each is accepted, [n]."""
        return np.array([not reasons for reasons in self.reasons])


def _totals(logits: Logits, group: int) -> Array:
    images, members, classes = logits.shape
    groups = softmax(logits).reshape(images, members // group, group, classes)
    totals: Array = groups.sum(axis=2).cumsum(axis=1)
    return totals


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
    """Share of each class, as the first group of members sees it, that is flagged at each α.

    Returns:
        `marginal`: by p-values over all calibration images, `class`: by those within the class;
        None for a class that no image is taken for. Classes are numbered as the labels are.
    """
    scores, classes = answers.scores[calibration.score], answers.first_classes
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
    inside = sets.sets(answers.first)
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


def gate(decisions: Decisions, labels: Labels | None) -> dict[str, float | None]:
    """What a policy does: share accepted, the error among the accepted, mean number of members.

    Args:
        decisions: on n images.
        labels: theirs, [n], or None for images of no class.
    """
    accepted, errors = decisions.accepted, None
    if labels is not None and accepted.any():
        errors = float((decisions.classes != labels)[accepted].mean())
    return {
        "accepted": float(accepted.mean()),
        "error_among_accepted": errors,
        "members": float(decisions.members.mean()),
    }


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
                name: gate(answers.decide(calibration, policy), truth)
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
