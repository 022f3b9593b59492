"""Out-of-distribution scores: the higher, the less an image resembles the training data.

Each detector is a pure function of what the ensemble computed. A score is no decision: it becomes
one through its conformal p-value (`models.conformal`) and a policy (`models.policy`).
"""

from __future__ import annotations

from collections.abc import Callable

from models.uncertainty import Array, Prediction

DETECTORS: dict[str, Callable[[Prediction], Array]] = {
    "predictive_entropy": lambda prediction: prediction.predictive_entropy,
    "mutual_information": lambda prediction: prediction.mutual_information,
    "max_probability": lambda prediction: 1.0 - prediction.probabilities.max(axis=1),
}


def scores(prediction: Prediction) -> dict[str, Array]:
    """Every detector's score [B] of a prediction; `max_probability` scores 1 − max p̄."""
    return {name: detector(prediction) for name, detector in DETECTORS.items()}
