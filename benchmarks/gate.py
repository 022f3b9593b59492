"""The gate as it is served: an OOD flag and a least probability, one beside the other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.calibration import Calibration
from models.detectors import FUSED
from models.fusion import Surprise
from models.policy import Policy
from models.uncertainty import Array
from training.certify import certify_policies
from training.evaluate import Answers, Labels, gate
from training.recipe import CertifiedPolicy, Levels


def policy_of(levels: Levels, calibration: Answers, labels: Labels) -> Policy:
    """The policy of a recipe; one that is to be certified is certified on calibration images.

    Args:
        levels: as the recipe has them.
        calibration: answers on the calibration images.
        labels: theirs, [n].

    Raises:
        training.certify.CertifyError: the images do not prove what the policy asks for.
    """
    if isinstance(levels, CertifiedPolicy):
        proved = certify_policies({"default": levels}, calibration, labels, FUSED)["default"]
        return levels.policy(proved.threshold)
    return levels


def decisions(
    policy: Policy, calibration: Calibration, sets: Mapping[str, tuple[Answers, Labels | None]]
) -> dict[str, dict[str, float | None]]:
    """What the policy does to each set of answers, with labels if there are any."""
    return {
        name: gate(answers.decide(calibration, policy), labels)
        for name, (answers, labels) in sets.items()
    }


def joint_score(calibration: Answers, answers: Answers) -> Array:
    """One score [B] of both: the larger of their surprises among calibration images.

    A threshold on it is a flag and a least probability that each reject as many of the calibration
    images (Tippett 1931): the gate at every strictness, with nothing to tune.
    """
    pairs = (
        (calibration.scores[FUSED], answers.scores[FUSED]),
        (_doubt(calibration), _doubt(answers)),
    )
    surprises = [Surprise.fit(known)(scores) for known, scores in pairs]
    return np.asarray(np.max(surprises, axis=0), dtype=np.float64)


def _doubt(answers: Answers) -> Array:
    doubt: Array = 1 - answers.prediction.probabilities.max(axis=1)
    return doubt
