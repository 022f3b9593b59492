from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from models.fusion import Surprise, fuse

Floats = NDArray[np.float64]

training_scores = st.lists(
    st.one_of(st.floats(-1e3, 1e3, width=32), st.integers(0, 3).map(float)), min_size=1
)


def shares(known: Floats, scores: Floats) -> Floats:
    """Share of the known scores that are at least as high."""
    return np.mean(known >= scores[:, None], axis=1)


@given(known=training_scores)
def test_points_are_exact_and_what_lies_between_stays_between(known: list[float]) -> None:
    """Ties share one surprise: −ln of the share of scores that are at least as high."""
    scores = np.array(known)
    surprise, expected = Surprise.fit(scores), -np.log(shares(scores, scores))
    assert surprise.values == pytest.approx(-np.log(shares(scores, surprise.scores)), abs=1e-12)
    for extreme in (scores.argmin(), scores.argmax()):
        assert surprise(scores[extreme, None]) == pytest.approx(expected[extreme, None])
    below = np.searchsorted(surprise.scores, scores, side="right") - 1
    above = np.searchsorted(surprise.scores, scores)
    for values in (surprise(scores), expected):
        assert (values >= surprise.values[below] - 1e-12).all()
        assert (values <= surprise.values[above] + 1e-12).all()


@pytest.mark.parametrize("tied", [(0, 0), (-9, 0), (0.2, 0.9), (1, 9)])
def test_surprise_of_many_training_scores_is_exact_within_its_steps(
    tied: tuple[float, float],
) -> None:
    """Ranks are left out only where more than 1/step − 1 images are at least as surprising."""
    size, points = 3_000, 256
    step = math.log(size) / (points - 1)
    widest = math.log((1 / step + 2) / (1 / step - 1))
    scores = np.random.default_rng(0).gumbel(size=size)
    scores[(scores > tied[0]) & (scores < tied[1])] = tied[1]
    surprise = Surprise.fit(scores)
    assert surprise(scores) == pytest.approx(-np.log(shares(scores, scores)), abs=widest)
    if len(np.unique(scores)) == size:
        counts = np.rint(np.geomspace(1, size, points))
        assert len(surprise.scores) == len(np.unique(counts))


@given(known=training_scores, scores=st.lists(st.floats(-1e4, 1e4), min_size=2))
def test_surprise_never_falls_and_is_never_negative(
    known: list[float], scores: list[float]
) -> None:
    surprises = Surprise.fit(np.array(known))(np.sort(scores))
    assert (np.diff(surprises) >= -1e-12 * surprises[1:]).all()
    assert (surprises >= 0).all()


def test_surprise_between_and_below_training_scores_by_hand() -> None:
    surprise = Surprise.fit(np.array([4.0, 1.0, 2.0, 2.0]))
    values = [0, -math.log(3 / 4), -math.log(1 / 4)]
    assert surprise.scores.tolist() == [1, 2, 4]
    assert surprise.values == pytest.approx(values)
    between = [(values[0] + values[1]) / 2, (values[1] + values[2]) / 2]
    assert surprise(np.array([1.5, 3.0])) == pytest.approx(between)
    assert surprise(np.array([1.0, 0.0, -math.inf])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [2, 5, 100])
def test_beyond_the_largest_score_the_line_of_the_last_tenth_goes_on(size: int) -> None:
    known = np.arange(float(size)) ** 2
    surprise = Surprise.fit(known)
    last = min(size, 10)
    slope = math.log(last) / (known[-1] - known[-last])
    excess = np.array([0, 1e-6, 1, 50, 1e6])
    expected = math.log(size) + slope * excess
    assert surprise(known[-1] + excess) == pytest.approx(expected, rel=1e-9)
    assert surprise(np.nextafter(known[-1:], 0)) == pytest.approx(math.log(size))


@pytest.mark.parametrize("count", [1, 2, 1_000])
def test_scores_that_are_all_equal(count: int) -> None:
    surprise = Surprise.fit(np.full(count, 3.0))
    found = surprise(np.array([2.0, 3.0, 3.0 + 1e-6]))
    assert found[:2].tolist() == [0, 0]
    assert found[2] > 1e4


@pytest.mark.parametrize("known", [[1.0], [2.0, 2.0], [1.0, 2.0, 5.0]])
def test_what_is_not_a_number_is_infinitely_surprising(known: list[float]) -> None:
    surprise = Surprise.fit(np.array(known))
    found = surprise(np.array([math.nan, math.inf, 1.0]))
    assert found.tolist() == [math.inf, math.inf, 0]
    assert fuse({"a": surprise}, {"a": np.array([math.nan, 1.0])}).tolist() == [math.inf, 0]


def test_scores_in_single_precision() -> None:
    known = np.random.default_rng(0).random(50).astype(np.float32)
    single, double = Surprise.fit(known), Surprise.fit(known.astype(np.float64))
    assert single(known).tolist() == double(known.astype(np.float64)).tolist()
    assert single(known).dtype == np.float64


def test_surprises_are_exponentially_distributed() -> None:
    """−ln p of a uniform p is exponential(1), whatever law the scores have.

    The largest distance from that law is at most the sum of three: of m new scores from theirs, of
    n training scores from theirs (both Kolmogorov's law, at the probability of 4 standard errors),
    and a step between points.
    """
    seed, size, count, points = 20260201, 20_000, 4_000, 256
    print(f"seed {seed}")
    randomness = np.random.default_rng(seed)
    surprise = Surprise.fit(randomness.exponential(size=size))
    surprises = surprise(randomness.exponential(size=count))
    rare = 2 * stats.norm.sf(4)
    step = 1 - size ** (-1 / (points - 1))
    bound = stats.kstwo.isf(rare, count) + stats.kstwo.isf(rare, size) + step
    assert stats.kstest(surprises, "expon").statistic < bound


@pytest.mark.parametrize("rank", [2, 20, 200])
def test_rare_surprises_are_as_rare_as_they_say(rank: int) -> None:
    """The share p of new scores above the r-th largest of n is Beta(r, n + 1 − r) distributed.

    So the number of m new ones whose surprise reaches −ln(r/n) is beta-binomial: 4 standard errors.
    """
    seed, size, count = 20260202 + rank, 2_000, 20_000
    print(f"seed {seed}")
    randomness = np.random.default_rng(seed)
    known = randomness.normal(size=size)
    level = Surprise.fit(known)(np.sort(known)[size - rank, None])
    reached = np.sum(Surprise.fit(known)(randomness.normal(size=count)) >= level)
    law = stats.betabinom(count, rank, size + 1 - rank)
    assert abs(reached - law.mean()) < 4 * law.std()


def test_far_scores_of_an_exponential_tail_go_on_exponentially() -> None:
    """The surprise of x is x, where p falls by its last tenth and beyond, if the slope is 1.

    By Rényi, the largest of n exponential scores exceeds the tenth largest by Σ E_i / i, i < 10:
    of R fits, the mean run is within 4 standard errors of Σ 1/i, with the variance Σ 1/i².
    """
    seed, fits, size = 20260203, 400, 1_000
    print(f"seed {seed}")
    runs = []
    for scores in np.random.default_rng(seed).exponential(size=(fits, size)):
        surprise, largest = Surprise.fit(scores), scores.max()
        there, far = surprise(np.array([largest, largest + 1]))
        runs.append(math.log(10) / (far - there))
    places = np.arange(1, 10)
    error = math.sqrt(np.sum(1 / places**2) / fits)
    assert abs(np.mean(runs) - np.sum(1 / places)) < 4 * error


def test_fused_score_by_hand() -> None:
    identity = Surprise(np.array([0.0, 100.0]), np.array([0.0, 100.0]))
    doubled = Surprise(np.array([0.0, 100.0]), np.array([0.0, 200.0]))
    scores = {
        "one": np.array([3.0, 0.0, 5.0]),
        "two": np.array([2.0, 7.0, 6.0]),
        "not fused": np.array([math.nan, 9.0, 9.0]),
    }
    fused = fuse({"one": identity, "two": doubled}, scores)
    assert fused == pytest.approx([5, 14, 13])
    assert fuse({"two": identity}, scores) == pytest.approx([2, 7, 6])
    with pytest.raises(KeyError, match="three"):
        fuse({"one": identity, "three": identity}, scores)
