from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, binom, false_discovery_control

from models.conformal import (
    CalibrationError,
    ClassConditionalTest,
    ConformalTest,
    benjamini_hochberg,
    conditional_level,
)
from models.policy import Policy, reasons_to_abstain

tied = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=30)
finite = st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=30)
labelled = st.lists(
    st.tuples(st.integers(0, 6).map(float), st.integers(0, 3)), min_size=1, max_size=30
)


def columns(pairs: list[tuple[float, int]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    scores, classes = zip(*pairs, strict=True)
    return np.array(scores), np.array(classes)


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


REFERENCE_RANKS = [
    (0.01, 1_000, 3),
    (0.01, 5_000, 34),
    (0.01, 10_000, 78),
    (0.001, 1_000, 0),
    (0.001, 5_000, 1),
    (0.001, 10_000, 3),
    (0.01, 458, 0),
    (0.01, 459, 1),
    (0.001, 4_602, 0),
    (0.001, 4_603, 1),
]


@pytest.mark.parametrize(("alpha", "size", "rank"), REFERENCE_RANKS)
def test_ranks_that_keep_the_rate_with_confidence(alpha: float, size: int, rank: int) -> None:
    assert conditional_level(alpha, size, confidence=0.99) == rank / (size + 1)


@given(
    alpha=st.floats(1e-4, 0.9999),
    size=st.integers(1, 20_000),
    confidence=st.floats(0.001, 0.9999),
)
def test_conditional_level_is_the_largest_rank_of_the_beta_law(
    alpha: float, size: int, confidence: float
) -> None:
    rank = round(conditional_level(alpha, size, confidence) * (size + 1))
    rounding = 1e-9
    assert 0 <= rank <= size
    if rank > 0:
        assert beta.cdf(alpha, rank, size + 1 - rank) >= confidence - rounding
    if rank < size:
        assert beta.cdf(alpha, rank + 1, size - rank) < confidence + rounding


@pytest.mark.parametrize("confidence", [None, 0.5, 0.9])
def test_rate_given_the_calibration_set_exceeds_alpha_as_rarely_as_promised(
    confidence: float | None,
) -> None:
    """Scores are uniform, so the rate of the rule "p ≤ level" is one minus the least flagged score.

    Of R calibration sets a share v = P(Beta(k, n + 1 − k) > α) exceeds α: 4 standard errors of it.
    The marginal level α itself (no confidence) does so for nearly half of the sets.
    """
    seed, draws, size, alpha = 20260104, 4_000, 500, 0.02
    print(f"seed {seed}")
    level = alpha if confidence is None else conditional_level(alpha, size, confidence)
    rank = math.floor(level * (size + 1))
    expected = beta.sf(alpha, rank, size + 1 - rank)
    assert 0.4 < expected < 0.5 if confidence is None else expected <= 1 - confidence
    exceeded = 0
    for row in np.random.default_rng(seed).random((draws, size)):
        test = ConformalTest.fit(row)
        just_above = np.nextafter(test.scores, 2)
        exceeded += 1 - just_above[test.p_values(just_above) <= level].min() > alpha
    error = math.sqrt(expected * (1 - expected) / draws)
    assert abs(exceeded / draws - expected) < 4 * error


def test_tied_scores_keep_the_conditional_rate() -> None:
    """20 equally likely scores, and α just below a rate that they can have: the tightest case.

    The rate exceeds α when fewer than k of n calibration scores are among the two highest values,
    which is binomial: 4 standard errors of R draws.
    """
    seed, draws, size, alpha, confidence = 20260105, 10_000, 500, 0.0999, 0.9
    print(f"seed {seed}")
    level = conditional_level(alpha, size, confidence)
    expected = binom.cdf(round(level * (size + 1)) - 1, size, 0.1)
    assert 0.5 * (1 - confidence) < expected <= 1 - confidence
    values = np.arange(20.0)
    exceeded = 0
    for row in np.random.default_rng(seed).integers(0, 20, (draws, size)):
        exceeded += (ConformalTest.fit(row).p_values(values) <= level).mean() > alpha
    error = math.sqrt(expected * (1 - expected) / draws)
    assert abs(exceeded / draws - expected) < 4 * error


@pytest.mark.parametrize(
    ("alpha", "size", "confidence"),
    [(0, 10, 0.9), (1, 10, 0.9), (0.1, 0, 0.9), (0.1, 10, 0), (0.1, 10, 1), (math.nan, 10, 0.9)],
)
def test_promises_that_have_no_level(alpha: float, size: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=f"no level for alpha {alpha}, {size} calibration images"):
        conditional_level(alpha, size, confidence)


@given(calibration=labelled, others=labelled)
def test_class_conditional_p_values_by_counting(
    calibration: list[tuple[float, int]], others: list[tuple[float, int]]
) -> None:
    test = ClassConditionalTest.fit(*columns(calibration))
    expected = []
    for score, label in others:
        same = [known for known, its_label in calibration if its_label == label]
        count = sum(known >= score for known in same)
        expected.append((1 + count) / (len(same) + 1) if same else 0.0)
    assert test.p_values(*columns(others)).tolist() == expected


def test_class_conditional_p_values_are_uniform_in_each_class() -> None:
    """P(p = j/(n_c + 1)) = 1/(n_c + 1) in class c, whose scores have a scale of their own.

    The count of each j among R draws is binomial: 4 standard errors of it. One test for all classes
    flags the class with the larger scores more often than α.
    """
    seed, draws, alpha = 20260106, 5_000, 0.2
    print(f"seed {seed}")
    classes = np.repeat([0, 1, 2], [9, 4, 1])
    scales = np.array([1.0, 10.0, 0.1])
    rng = np.random.default_rng(seed)
    known = rng.exponential(scales[classes], (draws, classes.size))
    new = rng.exponential(scales, (draws, 3))
    ids = np.arange(3)
    p_values = np.array(
        [
            ClassConditionalTest.fit(row, classes).p_values(news, ids)
            for row, news in zip(known, new, strict=True)
        ]
    )
    for label, size in enumerate([9, 4, 1]):
        counts = np.bincount(np.rint(p_values[:, label] * (size + 1)).astype(int))[1:]
        share = 1 / (size + 1)
        assert counts.size == size + 1
        assert np.abs(counts - draws * share).max() < 4 * math.sqrt(draws * share * (1 - share))
    marginal = np.mean(
        [
            ConformalTest.fit(row).p_values(news[1:2]) <= alpha
            for row, news in zip(known, new, strict=True)
        ]
    )
    assert marginal > alpha + 4 * math.sqrt(alpha * (1 - alpha) / draws)


def test_class_without_calibration_images_is_always_flagged() -> None:
    test = ClassConditionalTest.fit(np.array([1.0, 2.0]), np.array([0, 3]))
    p_values = test.p_values(np.array([0.0, 0.0, 0.0]), np.array([0, 1, 3]))
    assert p_values.tolist() == [1.0, 0.0, 1.0]
    policy = Policy(alpha=1e-9, min_probability=0.5)
    reasons = reasons_to_abstain(policy, np.array([[0.9, 0.1]] * 3), p_values, policy.alpha)
    assert reasons == [(), ("ood",), ()]


@pytest.mark.parametrize(
    ("scores", "classes", "reason"),
    [
        (np.array([]), np.array([]), r"got shapes \(0,\) and \(0,\)"),
        (np.zeros(2), np.zeros(3), r"got shapes \(2,\) and \(3,\)"),
        (np.zeros((2, 2)), np.zeros((2, 2)), r"got shapes \(2, 2\) and \(2, 2\)"),
        (np.array([1.0, np.nan]), np.array([0, 1]), "must be finite"),
    ],
)
def test_calibration_that_allows_no_class_conditional_test(
    scores: Any, classes: Any, reason: str
) -> None:
    with pytest.raises(CalibrationError, match=reason):
        ClassConditionalTest.fit(scores, classes)


def discoveries(p_values: NDArray[np.float64], rate: float) -> NDArray[np.bool_]:
    """Flags as the gate raises them: on what does not exceed the level."""
    flags: NDArray[np.bool_] = ~(p_values > benjamini_hochberg(p_values, rate))
    return flags


p_values_of_a_batch = st.lists(
    st.one_of(st.floats(0, 1, exclude_min=True), st.integers(1, 20).map(lambda k: k / 20)),
    min_size=1,
    max_size=30,
)


@given(p_values=p_values_of_a_batch, rate=st.floats(0.01, 0.99))
def test_benjamini_hochberg_as_in_scipy(p_values: list[float], rate: float) -> None:
    adjusted = false_discovery_control(p_values)
    assume(np.abs(adjusted - rate).min() > 1e-12)
    assert discoveries(np.array(p_values), rate).tolist() == (adjusted <= rate).tolist()


@given(
    numerators=st.lists(st.integers(1, 64), min_size=1, max_size=20),
    eighths=st.integers(1, 7),
    seed=st.integers(0, 100),
)
def test_benjamini_hochberg_by_its_definition(
    numerators: list[int], eighths: int, seed: int
) -> None:
    """P-values j/64 and rates r/8, so that every comparison is one of integers."""
    size, ascending = len(numerators), sorted(numerators)
    passing = [j for i, j in enumerate(ascending, 1) if 8 * size * j <= 64 * eighths * i]
    expected = [j <= max(passing, default=0) for j in numerators]
    p_values = np.array(numerators) / 64
    assert benjamini_hochberg(p_values, eighths / 8) == max(passing, default=0) / 64
    assert discoveries(p_values, eighths / 8).tolist() == expected
    order = np.random.default_rng(seed).permutation(size)
    assert discoveries(p_values[order], eighths / 8).tolist() == np.array(expected)[order].tolist()


def test_images_that_could_not_be_judged_are_flagged_but_are_no_evidence() -> None:
    p_values = np.array([0.01, 0.2, 0.04])
    judged = discoveries(p_values, 0.06)
    assert judged.tolist() == [True, False, True]
    unjudged = np.array([0.0, np.nan, 0.0])
    together = discoveries(np.concatenate([p_values, unjudged]), 0.06)
    assert together.tolist() == [*judged.tolist(), True, True, True]
    assert discoveries(unjudged, 0.06).all()
    assert benjamini_hochberg(unjudged, 0.06) == 0
    assert benjamini_hochberg(p_values[:0], 0.06) == 0


@pytest.mark.parametrize("unfamiliar", [0, 4, 12])
def test_false_discovery_rate_of_a_batch(unfamiliar: int) -> None:
    """FDR = rate · m0/m exactly, when rate · (n + 1)/m is an integer and scores are continuous.

    (Marandon et al. 2022, arXiv 2208.06685, theorem 3.1.) The false-discovery proportion lies
    within [0, 1], so its variance is at most FDR · (1 − FDR): 4 standard errors of R draws.
    """
    seed, draws, size, batch, rate = 20260107, 5_000, 255, 16, 0.25
    print(f"seed {seed}")
    assert (rate * (size + 1) / batch).is_integer()
    rng = np.random.default_rng(seed)
    shift = np.where(np.arange(batch) < unfamiliar, 2.0, 0.0)
    proportions = []
    for _ in range(draws):
        test = ConformalTest.fit(rng.normal(size=size))
        flags = discoveries(test.p_values(rng.normal(shift)), rate)
        proportions.append(flags[unfamiliar:].sum() / max(flags.sum(), 1))
    expected = rate * (batch - unfamiliar) / batch
    error = math.sqrt(expected * (1 - expected) / draws)
    assert abs(np.mean(proportions) - expected) < 4 * error


@pytest.mark.parametrize("unfamiliar", [0, 6])
def test_false_discovery_rate_of_p_values_within_classes(unfamiliar: int) -> None:
    """FDR ≤ rate · m0/m, for two classes whose scores have scales of their own.

    The false-discovery proportion lies within [0, 1]: 4 standard errors of R draws above the bound.
    The procedure is not idle: it finds most of what stands out, and with nothing to find at least
    a quarter of the bound is used.
    """
    seed, draws, batch, rate = 20261123, 3_000, 16, 0.25
    print(f"seed {seed}")
    classes, known_classes = np.arange(batch) % 2, np.repeat([0, 1], [255, 127])
    scales = np.array([1.0, 10.0])
    shift = np.where(np.arange(batch) < unfamiliar, 4.0, 0.0)
    rng = np.random.default_rng(seed)
    proportions, found = [], []
    for _ in range(draws):
        known = scales[known_classes] * rng.normal(size=known_classes.size)
        test = ClassConditionalTest.fit(known, known_classes)
        p_values = test.p_values(scales[classes] * rng.normal(shift), classes)
        flags = discoveries(p_values, rate)
        proportions.append(flags[unfamiliar:].sum() / max(flags.sum(), 1))
        found.append(flags[:unfamiliar].mean() if unfamiliar else 1.0)
    bound = rate * (batch - unfamiliar) / batch
    error = math.sqrt(bound * (1 - bound) / draws)
    assert 0.25 * bound < np.mean(proportions) < bound + 4 * error
    assert np.mean(found) > 0.5


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, math.nan])
def test_rates_that_cannot_be_promised(rate: float) -> None:
    with pytest.raises(ValueError, match=f"must be within \\(0, 1\\), got {rate}"):
        benjamini_hochberg(np.array([0.5]), rate)
