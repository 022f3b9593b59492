"""Ambiguity and unfamiliarity apart: figures on images that are one, the other, or neither."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.calibration import Calibration
from models.policy import Policy
from models.uncertainty import Array, Prediction
from training.evaluate import Answers, Labels
from training.metrics import auroc

DECISIONS = ("accept", "uncertain", "ood")


def points(calibration: Calibration, policy: Policy, answers: Answers) -> Array:
    """Where n images lie, and what becomes of them, [3, n].

    The rows are the expected entropy (nats), the score that raises the policy's flag, and the index
    in `DECISIONS`: `ood` where the flag is up, or else `uncertain` where the gate abstains all the
    same.
    """
    prediction, scores = answers.prediction, answers.scores[calibration.detector(policy)]
    decisions = [
        DECISIONS.index("ood" if "ood" in reasons else "uncertain" if reasons else "accept")
        for reasons in answers.decide(calibration, policy).reasons
    ]
    return np.stack([prediction.expected_entropy, scores, decisions])


def place(
    calibration: Calibration,
    policy: Policy,
    test: tuple[Answers, Labels],
    others: Mapping[str, Answers],
) -> dict[str, Array]:
    """`points` of every set that is not empty, test images apart by whether the label is right.

    Args:
        calibration: the conformal tests of each detector.
        policy: the levels.
        test: answers on familiar images, and their labels [n].
        others: answers on ambiguous and unfamiliar sets.
    """
    answers, labels = test
    familiar = points(calibration, policy, answers)
    right = answers.classes == labels
    placed = {
        "test, right": familiar[:, right],
        "test, wrong": familiar[:, ~right],
        **{name: points(calibration, policy, each) for name, each in others.items()},
    }
    return {name: values for name, values in placed.items() if values.size}


def shares(placed: Array) -> dict[str, float]:
    """Share of each decision among `points` [3, n]."""
    return {name: float((placed[2] == index).mean()) for index, name in enumerate(DECISIONS)}


def ambiguity(
    test: Answers,
    ambiguous: tuple[Answers, Labels],
    foreign: Mapping[str, Answers],
    score: str,
) -> dict[str, Any]:
    """How ambiguous images differ from plain ones, and from unfamiliar ones, ready for JSON.

    `both_labels` is the mean probability of an image's two labels together, `two_most_likely` the
    share of images of which they are the two most probable classes. Each AUROC is
    P(ambiguous image scores higher than a test image), or P(foreign image scores higher than an
    ambiguous one), ties counted half, by expected entropy, 1 − max p̄, mutual information, its
    share in the predictive entropy, and the flag's score.

    Args:
        test: answers on familiar images.
        ambiguous: answers on `training.ambiguous` images, and both their labels [n, 2].
        foreign: answers on unfamiliar sets.
        score: the detector that raises the flag.
    """
    between, labels = ambiguous
    probabilities = between.prediction.probabilities
    likeliest = np.sort(probabilities.argsort(axis=1)[:, -2:], axis=1)

    def measures(answers: Answers) -> dict[str, Array]:
        prediction = answers.prediction
        return {
            "expected_entropy": prediction.expected_entropy,
            "max_probability": 1 - prediction.probabilities.max(axis=1),
            "mutual_information": prediction.mutual_information,
            "mutual_information_share": _share(prediction),
            score: answers.scores[score],
        }

    def aurocs(lower: Answers, higher: Answers) -> dict[str, float]:
        low, high = measures(lower), measures(higher)
        return {name: auroc(low[name], high[name]) for name in low}

    sets = {"test": test, "ambiguous": between, **foreign}
    return {
        "images": len(labels),
        "both_labels": float(np.take_along_axis(probabilities, labels, 1).sum(axis=1).mean()),
        "two_most_likely": float((likeliest == np.sort(labels, axis=1)).all(axis=1).mean()),
        "medians": {
            name: {
                measure: float(np.median(values)) for measure, values in measures(answers).items()
            }
            for name, answers in sets.items()
        },
        "auroc_over_test": aurocs(test, between),
        "auroc_over_ambiguous": {name: aurocs(between, each) for name, each in foreign.items()},
    }


def _share(prediction: Prediction) -> Array:
    """Mutual information by predictive entropy, [n]; 0 where both are."""
    total = prediction.predictive_entropy
    return np.divide(
        prediction.mutual_information, total, out=np.zeros_like(total), where=total > 0
    )
