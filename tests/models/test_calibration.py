from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta

from models.calibration import Calibration
from models.conformal import CalibrationError, ClassConditionalTest, conditional_level
from models.policy import Policy, reasons_to_abstain

LABELS = ("ant", "bee")
MARGINAL = Policy(alpha=0.1, min_probability=0.0)
STRICT = Policy(alpha=0.1, min_probability=0.0, alpha_confidence=0.9)
BY_CLASS = Policy(alpha=0.1, min_probability=0.0, conditional_on="class")


def fit(sizes: tuple[int, int], seed: int = 0) -> Calibration:
    """Two detectors, of images of two classes."""
    classes = np.repeat([0, 1], sizes)
    scores = np.random.default_rng(seed).normal(size=(2, classes.size))
    return Calibration.fit("first", {"first": scores[0], "second": scores[1]}, classes)


def test_a_policy_is_compared_with_the_test_it_asks_for() -> None:
    calibration = fit((40, 60))
    scores, classes = np.linspace(-2, 2, 9), np.arange(9) % 2
    for name in ("first", "second"):
        test = calibration.class_tests[name]
        assert isinstance(test, ClassConditionalTest)
        for policy, expected in (
            (MARGINAL, calibration.tests[name].p_values(scores)),
            (STRICT, calibration.tests[name].p_values(scores)),
            (BY_CLASS, test.p_values(scores, classes)),
        ):
            named = policy.model_copy(update={"score": None if name == "first" else name})
            assert calibration.detector(named) == name
            assert calibration.p_values(named, scores, classes).tolist() == expected.tolist()
    assert calibration.level(MARGINAL) == calibration.level(BY_CLASS) == 0.1
    assert calibration.level(STRICT) == conditional_level(0.1, 100, 0.9) < 0.1


def test_without_classes_there_are_no_tests_within_them() -> None:
    calibration = Calibration.fit("first", {"first": np.arange(9.0)}, None)
    assert calibration.size == 9
    assert calibration.class_tests == {}


def test_scores_that_are_no_numbers_are_named() -> None:
    with pytest.raises(CalibrationError, match=r"^second: calibration scores must be finite"):
        Calibration.fit("first", {"first": np.zeros(2), "second": np.array([0, np.nan])}, None)
    with pytest.raises(CalibrationError, match=r"^first: .*one class each"):
        Calibration.fit("first", {"first": np.zeros(2)}, np.zeros(3, int))


@pytest.mark.parametrize(
    ("alpha", "confidence"), [(0.1, 0.9), (0.01, 0.99), (0.001, 0.99), (0.05, 0.5)]
)
def test_confidence_is_refused_below_the_images_that_the_message_asks_for(
    alpha: float, confidence: float
) -> None:
    policy = Policy(alpha=alpha, min_probability=0.5, alpha_confidence=confidence)
    needed = math.ceil(math.log(1 - confidence) / math.log(1 - alpha))
    enough, few = (
        Calibration.fit("s", {"s": np.arange(float(size))}, None) for size in (needed, needed - 1)
    )
    enough.check({"sure": policy}, LABELS)
    assert enough.level(policy) > 0
    with pytest.raises(CalibrationError) as caught:
        few.check({"plain": MARGINAL, "sure": policy}, LABELS)
    assert str(caught.value) == (
        f"policy 'sure': {needed - 1:,} calibration images do not keep alpha {alpha:g} with "
        f"confidence {confidence:g}: {needed:,} are needed"
    )


@pytest.mark.parametrize(("alpha", "needed"), [(0.1, 9), (0.3, 3), (0.01, 99), (0.007, 142)])
def test_a_class_is_refused_below_the_images_that_the_message_asks_for(
    alpha: float, needed: int
) -> None:
    policy = Policy(alpha=alpha, min_probability=0.5, conditional_on="class", score="second")
    enough, few = fit((needed, needed)), fit((2 * needed, needed - 1))
    enough.check({"fair": policy}, LABELS)
    least = enough.p_values(policy, np.full(2, np.inf), np.arange(2))
    assert (least <= alpha).all()
    with pytest.raises(CalibrationError) as caught:
        few.check({"fair": policy}, LABELS)
    assert str(caught.value) == (
        f"policy 'fair': {needed - 1} calibration images of class 'bee' do not keep alpha "
        f"{alpha:g} within it: {needed} are needed"
    )
    with pytest.raises(CalibrationError, match="0 calibration images of class 'cat'"):
        enough.check({"fair": policy}, (*LABELS, "cat"))
    enough.check({"plain": MARGINAL}, (*LABELS, "cat"))


def flagged(calibration: Calibration, policy: Policy, scores: NDArray[np.float64]) -> list[bool]:
    """Whether the gate flags images of class 0."""
    p_values = calibration.p_values(policy, scores, np.zeros(scores.size, int))
    probabilities = np.tile([0.9, 0.1], (scores.size, 1))
    reasons = reasons_to_abstain(policy, probabilities, p_values, calibration.level(policy))
    return [why == ("ood",) for why in reasons]


def test_the_gate_keeps_alpha_for_as_many_calibration_sets_as_it_is_confident() -> None:
    """P over calibration sets of (true rate > α) is v = P(Beta(k, n + 1 − k) > α) ≤ 1 − confidence.

    Scores are uniform, so the true rate of a gate is one minus the least score that it flags. The
    number of R sets that break the promise is binomial: 4 standard errors of v. The marginal policy
    breaks α for nearly half of them.
    """
    seed, draws, size, alpha, confidence = 20261121, 2_000, 300, 0.05, 0.95
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    plain = Policy(alpha=alpha, min_probability=0.0)
    sure = Policy(alpha=alpha, min_probability=0.0, alpha_confidence=confidence)
    broken = {plain: 0, sure: 0}
    for row in rng.random((draws, size)):
        calibration = Calibration.fit("s", {"s": row}, None)
        just_above = np.nextafter(np.sort(row), 2)
        for policy in broken:
            # The flag is monotone: the first flagged of the ascending scores is the threshold.
            first = flagged(calibration, policy, just_above).index(True)
            broken[policy] += 1 - just_above[first] > alpha
    for policy, count in broken.items():
        rank = math.floor(calibration.level(policy) * (size + 1) + 1e-9)
        expected = beta.sf(alpha, rank, size + 1 - rank)
        error = math.sqrt(expected * (1 - expected) / draws)
        assert abs(count / draws - expected) < 4 * error
        assert (expected <= 1 - confidence) == (policy is sure)
        assert expected > (0.4 if policy is plain else 0.02)
