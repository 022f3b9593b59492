"""Calibration: what held-out images that training has not seen say of scores and probabilities.

They must be a random part of the training data: what is promised holds for images exchangeable with
them, and for no others.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from models.bundle import CLASSES
from models.calibration import Calibration
from models.conformal import CalibrationError
from models.manifest import PredictionSetSpec, SetLevels
from models.prediction_sets import SCORES, PredictionSets
from training.evaluate import Answers, Labels


def calibrate(score: str, answers: Answers) -> Calibration:
    """The conformal tests of every detector; `score` raises the flag."""
    return Calibration.fit(score, answers.scores, answers.first_classes)


def fit_sets(
    levels: SetLevels | None, answers: Answers, labels: Labels
) -> PredictionSetSpec | None:
    """The prediction sets that a recipe asks for, if it does, from answers and labels [n].

    Raises:
        CalibrationError: there are too few images for the coverage: every set would hold every
            label.
    """
    if levels is None:
        return None
    coverage = levels.coverage
    sets = PredictionSets.fit(answers.first, labels, coverage, SCORES[levels.score])
    if math.isinf(sets.threshold):
        needed = math.ceil(round(coverage / (1 - coverage), 9))
        raise CalibrationError(
            f"prediction_sets: {sets.size:,} calibration images are too few for a coverage of "
            f"{coverage:g}: {needed:,} are needed"
        )
    return PredictionSetSpec(
        score=levels.score,
        coverage=coverage,
        calibration_size=sets.size,
        threshold=sets.threshold,
    )


def stored(answers: Answers) -> dict[str, NDArray[np.generic]]:
    """Scores and the first group's classes in the order of the images, as in `calibration.npz`."""
    return {**answers.scores, CLASSES: answers.first_classes}
