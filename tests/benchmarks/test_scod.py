from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.scod import scod
from training import metrics

Array = NDArray[np.float64]
SEED = 6


def test_by_hand() -> None:
    """Two right, a stranger, one wrong: coverage 1/6, 1/3, 5/6, 1 and cost 0, 0, 1/2, 2/3.

    From 1/3 to 5/6 the risk is 1 − 1/3 / c, and from there to 1 the same.
    """
    figures = scod(np.array([1.0, 2.0, 4.0]), np.array([False, False, True]), np.array([3.0]))
    assert figures["accepted"] == pytest.approx(2 / 3)
    assert figures["area"] == pytest.approx(2 / 3 - math.log(3) / 3)


def test_equal_scores_are_mixed_in_the_area_and_one_threshold() -> None:
    """All equal: risk 1/2 · 1/4 + 1/2 at every coverage, and nothing but all can be accepted."""
    wrong = np.array([True, False, False, False])
    assert scod(np.zeros(4), wrong, np.zeros(7)) == {"area": pytest.approx(0.625), "accepted": 0}


def test_no_stranger_and_no_error_among_the_accepted() -> None:
    """Strangers last: the risk is (c − 1/2)/c beyond a coverage of 1/2."""
    figures = scod(np.arange(50.0), np.zeros(50, bool), np.full(3, 99.0))
    assert figures["accepted"] == 1
    assert figures["area"] == pytest.approx(1 / 2 - math.log(2) / 2)
    reverse = scod(np.arange(50.0), np.zeros(50, bool), np.full(3, -1.0))
    assert reverse["accepted"] == 0
    assert reverse["area"] == pytest.approx(1 / 2 + math.log(2) / 2)


def brute_force(familiar: Array, wrong: NDArray[np.bool_], unfamiliar: Array) -> float:
    """The largest share accepted, by trying every score as the threshold."""
    best = 0.0
    for threshold in np.concatenate([familiar, unfamiliar]):
        mistakes = ((familiar <= threshold) & wrong).mean() / 2
        strangers = (unfamiliar <= threshold).mean() / 2
        accepted = (familiar <= threshold).mean()
        if mistakes + strangers <= 0.01 * (accepted / 2 + strangers):
            best = max(best, accepted)
    return best


@pytest.mark.parametrize("digits", [1, 15])
def test_accepted_by_brute_force(digits: int) -> None:
    print(f"seed {SEED}")
    randomness = np.random.default_rng(SEED)
    familiar = randomness.normal(size=400).round(digits)
    wrong = randomness.random(400) < 0.1 / (1 + np.exp(-4 * familiar))
    unfamiliar = randomness.normal(4, 1, size=150).round(digits)
    expected = brute_force(familiar, wrong, unfamiliar)
    assert 0.3 < expected < 1
    assert scod(familiar, wrong, unfamiliar)["accepted"] == pytest.approx(expected)


def test_the_sizes_of_the_sets_do_not_matter() -> None:
    print(f"seed {SEED}")
    randomness = np.random.default_rng(SEED)
    familiar, unfamiliar = randomness.normal(size=30), randomness.normal(1, 1, size=20)
    wrong = randomness.random(30) < 0.2
    once = scod(familiar, wrong, unfamiliar)
    assert scod(familiar, wrong, np.tile(unfamiliar, 9)) == pytest.approx(once)


def test_equal_sets_have_nearly_the_area_under_the_risk_coverage_curve() -> None:
    """As many strangers as familiar images: AURC with strangers as errors, but for its steps.

    Each of n steps takes its end for its mean: no risk is off by more than 1, and beyond the first
    k steps none by more than 1/k, which together is less than (1 + ln n) / n.
    """
    print(f"seed {SEED}")
    randomness = np.random.default_rng(SEED)
    scores = randomness.uniform(0, 0.5, 2000)
    wrong = randomness.random(1000) < 2 * scores[:1000] ** 2
    failed = np.concatenate([wrong, np.ones(1000, bool)])
    probabilities = np.stack([1 - scores, scores], axis=1)
    expected = metrics.aurc(probabilities, failed.astype(np.int64))
    area = scod(scores[:1000], wrong, scores[1000:])["area"]
    assert abs(area - expected) < (1 + math.log(2000)) / 2000
