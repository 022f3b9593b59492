from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.conformal import CalibrationError, ConformalTest

tied = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=30)
finite = st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=30)


@given(calibration=st.one_of(tied, finite), others=st.one_of(tied, finite))
def test_p_values_by_counting(calibration: list[float], others: list[float]) -> None:
    scores = calibration + others
    p_values = ConformalTest.fit(np.array(calibration)).p_values(np.array(scores))
    expected = [
        (1 + sum(known >= score for known in calibration)) / (len(calibration) + 1)
        for score in scores
    ]
    assert p_values.tolist() == expected


@given(calibration=tied, seed=st.integers(0, 100))
def test_order_of_the_calibration_scores_does_not_matter(
    calibration: list[float], seed: int
) -> None:
    scores = np.array(calibration)
    shuffled = np.random.default_rng(seed).permutation(scores)
    test = ConformalTest.fit(scores)
    assert np.array_equal(test.scores, ConformalTest.fit(shuffled).scores)
    assert test.size == len(calibration)
    assert scores.tolist() == calibration


@pytest.mark.parametrize("size", [1, 9, 10])
def test_p_values_of_exchangeable_scores_are_uniform(size: int) -> None:
    """Over draws of calibration set and image, P(p = k/(n + 1)) = 1/(n + 1) for each k.

    The count of each k among R draws is binomial: 4.5 standard errors of it.
    """
    seed, draws = 20260102, 20_000
    print(f"seed {seed}")
    scores = np.random.default_rng(seed).normal(size=(draws, size + 1))
    p_values = np.array(
        [ConformalTest.fit(row[:-1]).p_values(row[-1:])[0] for row in scores], dtype=float
    )
    counts = np.bincount(np.rint(p_values * (size + 1)).astype(int), minlength=size + 2)[1:]
    share = 1 / (size + 1)
    error = math.sqrt(draws * share * (1 - share))
    assert counts.sum() == draws
    assert np.abs(counts - draws * share).max() < 4.5 * error


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3, 0.5])
def test_tied_scores_raise_no_more_false_alarms_than_alpha(alpha: float) -> None:
    """Coarse scores are superuniform: P(p ≤ α) ≤ α, up to 4.5 standard errors of R draws."""
    seed, draws, size = 20260103, 10_000, 19
    print(f"seed {seed}")
    scores = np.random.default_rng(seed).integers(0, 4, (draws, size + 1)).astype(float)
    flagged = [ConformalTest.fit(row[:-1]).p_values(row[-1:])[0] <= alpha for row in scores]
    assert np.mean(flagged) <= alpha + 4.5 * math.sqrt(alpha * (1 - alpha) / draws)


def test_score_that_is_not_a_number_gets_the_least_p_value() -> None:
    test = ConformalTest.fit(np.array([3.0, 1.0, 2.0]))
    p_values = test.p_values(np.array([np.nan, np.inf, 3.5, -np.inf]))
    assert p_values.tolist() == [0.25, 0.25, 0.25, 1.0]


def test_precision_of_the_score_does_not_matter() -> None:
    """A float32 score ties with the calibration score that was stored from it."""
    scores = np.array([0.1, 0.2, 0.3], dtype=np.float32)
    test = ConformalTest.fit(scores)
    assert test.scores.dtype == np.float64
    assert test.p_values(scores).tolist() == [1.0, 0.75, 0.5]


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (np.array([]), r"must be a vector, got shape \(0,\)"),
        (np.zeros((2, 2)), r"must be a vector, got shape \(2, 2\)"),
        (np.array([1.0, np.nan]), "must be finite"),
        (np.array([1.0, np.inf]), "must be finite"),
        (np.array([-np.inf, 1.0]), "must be finite"),
        pytest.param(np.array(1.0), r"must be a vector, got shape \(\)"),
    ],
)
def test_scores_that_allow_no_p_value(scores: Any, reason: str) -> None:
    with pytest.raises(CalibrationError, match=reason):
        ConformalTest.fit(scores)
