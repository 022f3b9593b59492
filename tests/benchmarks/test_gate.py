from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.gate import decisions, joint_score, policy_of
from models.calibration import Calibration
from models.detectors import FUSED
from models.policy import Policy
from training.calibrate import calibrate
from training.certify import CertifyError
from training.evaluate import Answers
from training.recipe import CertifiedPolicy

SIZE = 2000
LABELS = np.zeros(SIZE, dtype=np.int64)
ALPHA = 0.01


def answers(confidence: NDArray[np.float64], fused: NDArray[np.float64]) -> Answers:
    """Of images [n] taken for class 0 with some confidence, and their fused scores."""
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    found = Answers.of(np.log(probabilities)[:, None, :].astype(np.float32))
    return replace(found, scores={**found.scores, FUSED: fused})


@pytest.fixture
def calibration() -> Answers:
    """Confidence from .6 to .999, and fused scores 0 … n − 1 in random order."""
    print("seed 8")
    randomness = np.random.default_rng(8)
    return answers(np.linspace(0.6, 0.999, SIZE), randomness.permutation(np.arange(float(SIZE))))


def test_the_joint_score_is_a_flag_and_a_probability_of_the_same_strictness(
    calibration: Answers,
) -> None:
    """At ln 20 each of the two rejects one calibration image in twenty, and no other."""
    joint = joint_score(calibration, calibration)
    rejected = joint > np.log(20)
    unsure = calibration.prediction.probabilities.max(axis=1)
    fused = calibration.scores[FUSED]
    expected = (fused > np.quantile(fused, 0.95)) | (unsure < np.quantile(unsure, 0.05))
    assert np.mean(rejected != expected) <= 4 / SIZE
    assert 0.05 < rejected.mean() < 0.1


def test_the_joint_score_goes_on_beyond_the_calibration_images(calibration: Answers) -> None:
    """Sure answers, ever less like the training images: no two are equal."""
    further = SIZE * np.array([1.0, 2.0, 4.0])
    joint = joint_score(calibration, answers(np.full(3, 0.999), further))
    assert (np.diff(joint) > 0).all()
    assert joint[0] >= joint_score(calibration, calibration).max()


def test_decisions_by_the_flag_and_the_probability(calibration: Answers) -> None:
    policy = Policy(alpha=ALPHA, min_probability=0.8)
    fitted: Calibration = calibrate(FUSED, calibration)
    known = answers(np.array([0.9, 0.9, 0.7, 0.9]), np.array([0.0, 9999.0, 0.0, 0.0]))
    sets = {"known": (known, np.array([0, 0, 0, 1])), "foreign": (known, None)}
    assert decisions(policy, fitted, sets) == {
        "known": {"accepted": 0.5, "error_among_accepted": 0.5, "members": 1.0},
        "foreign": {"accepted": 0.5, "error_among_accepted": None, "members": 1.0},
    }


def test_decisions_by_the_detector_that_the_policy_names(calibration: Answers) -> None:
    policy = Policy(alpha=ALPHA, min_probability=0, score="max_probability")
    known = answers(np.array([0.9, 0.55]), np.array([9999.0, 0.0]))
    found = decisions(policy, calibrate(FUSED, calibration), {"known": (known, None)})
    assert found["known"]["accepted"] == 0.5


def test_a_policy_is_taken_as_it_is_or_certified(calibration: Answers) -> None:
    """Nothing wrong above .7, everything below: the least probability is about that."""
    levels = Policy(alpha=ALPHA, min_probability=0.5)
    assert policy_of(levels, calibration, LABELS) == levels
    asked = CertifiedPolicy(alpha=ALPHA, target_risk=0.05, confidence=0.99)
    wrong = calibration.prediction.probabilities.max(axis=1) < 0.7
    certified = policy_of(asked, calibration, wrong.astype(np.int64))
    assert certified.alpha == ALPHA
    assert certified.min_probability == pytest.approx(0.7, abs=0.03)
    with pytest.raises(CertifyError, match="do not prove"):
        policy_of(asked, calibration, LABELS + 1)
