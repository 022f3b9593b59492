from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, betabinom

from models.conformal import CalibrationError, conditional_level
from models.prediction_sets import PredictionSets, Score, aps, lac, raps

regularised = partial(raps, penalty=0.25, free=2)
every_score = pytest.mark.parametrize("score", [lac, aps, regularised])


@st.composite
def labelled_probabilities(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities [n, K] in 32nds, so that sums are exact and ties are common, and labels [n]."""
    size, num_classes = draw(st.integers(1, 20)), draw(st.integers(2, 5))
    seed = draw(st.integers(0, 1_000))
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(32, rng.dirichlet(np.ones(num_classes)), size)
    return counts / 32, rng.integers(0, num_classes, size)


def scores_by_definition(score: Score, probabilities: NDArray[np.float64]) -> list[list[float]]:
    rows = []
    for row in probabilities.tolist():
        ranked = sorted(range(len(row)), key=lambda label: (-row[label], label))
        before = {label: sum(row[j] for j in ranked[:rank]) for rank, label in enumerate(ranked)}
        late = {label: 0.25 * max(rank + 1 - 2, 0) for rank, label in enumerate(ranked)}
        by_label = {
            lac: [1 - p for p in row],
            aps: [before[label] for label in range(len(row))],
            regularised: [before[label] + late[label] for label in range(len(row))],
        }
        rows.append(by_label[score])
    return rows


@every_score
@given(data=labelled_probabilities(), hundredths=st.integers(1, 100))
def test_sets_by_counting(score: Score, data: Any, hundredths: int) -> None:
    """Label y is in the set if its p-value (1 + #{i : s_i ≥ S(x, y)})/(n + 1) exceeds 1 − coverage.

    An equivalent definition (Vovk et al. 2005), in exact fractions.
    """
    probabilities, labels = data
    fitted = PredictionSets.fit(probabilities, labels, hundredths / 100, score)
    scores = scores_by_definition(score, probabilities)
    assert score(probabilities).tolist() == scores
    known = [row[label] for row, label in zip(scores, labels, strict=True)]
    expected = [
        [
            Fraction(1 + sum(s >= own for s in known), len(known) + 1)
            > 1 - Fraction(hundredths, 100)
            for own in row
        ]
        for row in scores
    ]
    assert fitted.sets(probabilities).tolist() == expected
    assert fitted.size == len(known)


@every_score
@given(data=labelled_probabilities(), levels=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
def test_larger_coverage_gives_larger_sets(score: Score, data: Any, levels: Any) -> None:
    probabilities, labels = data
    small, large = (
        PredictionSets.fit(probabilities, labels, level, score).sets(probabilities)
        for level in sorted(levels)
    )
    assert (small <= large).all()


@pytest.mark.parametrize("score", [aps, regularised, partial(raps, penalty=3.0, free=1)])
@given(data=labelled_probabilities(), coverage=st.floats(0.01, 1))
def test_most_likely_label_is_in_every_adaptive_set(
    score: Score, data: Any, coverage: float
) -> None:
    probabilities, labels = data
    sets = PredictionSets.fit(probabilities, labels, coverage, score).sets(probabilities)
    assert sets[np.arange(len(labels)), probabilities.argmax(axis=1)].all()


def test_set_of_an_image_unlike_every_class_may_be_empty() -> None:
    known = np.array([[0.9, 0.05, 0.05]] * 9)
    new = np.array([[0.9, 0.05, 0.05], [0.4, 0.3, 0.3]])
    sets = PredictionSets.fit(known, np.zeros(9, int), 0.9, lac).sets(new)
    assert sets.tolist() == [[True, False, False], [False, False, False]]


def test_adaptive_sets_of_an_accurate_classifier_are_its_labels() -> None:
    """Accuracy 0.95 is above the coverage: nothing needs to be added to the most likely label."""
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.full(4, 0.2), 100)
    labels = probabilities.argmax(axis=1)
    labels[:5] = probabilities[:5].argmin(axis=1)
    sets = PredictionSets.fit(probabilities, labels, 0.9, aps).sets(probabilities)
    assert sets.sum(axis=1).tolist() == [1] * 100
    assert sets[np.arange(100), labels].mean() == 0.95


@every_score
@pytest.mark.parametrize(("size", "coverage"), [(0, 0.5), (8, 0.9), (98, 0.99), (50, 1.0)])
def test_too_few_images_for_the_coverage_give_every_label(
    score: Score, size: int, coverage: float
) -> None:
    rng = np.random.default_rng(2)
    probabilities = rng.dirichlet(np.ones(3), size)
    fitted = PredictionSets.fit(probabilities, np.zeros(size, int), coverage, score)
    assert fitted.threshold == math.inf
    assert fitted.sets(np.array([[1.0, 0.0, 0.0]])).all()


@pytest.mark.parametrize(("size", "coverage"), [(9, 0.9), (99, 0.99), (99, 0.55), (99, 0.07)])
def test_smallest_size_for_the_coverage_keeps_the_largest_score(size: int, coverage: float) -> None:
    """(n + 1) · coverage is the whole rank k, although 100 · 0.55 and 100 · 0.07 exceed theirs."""
    scores = np.linspace(0.001, 0.5, size)
    probabilities = np.column_stack([1 - scores, scores])
    fitted = PredictionSets.fit(probabilities, np.zeros(size, int), coverage, lac)
    assert fitted.threshold == np.sort(lac(probabilities)[:, 0])[round((size + 1) * coverage) - 1]


def simulated_coverage(
    score: Score, coverage: float, draws: int, size: int, new: int, seed: int
) -> NDArray[np.int64]:
    """How many of `new` labels lie in their sets, for each of R calibration sets.

    The probabilities are not those of the labels: the promise must not need them to be right.
    """
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(4, 0.5), (draws, size + new))
    actual = np.cumsum(0.7 * probabilities + 0.3 / 4, axis=-1)
    labels = (rng.random((draws, size + new, 1)) > actual[..., :-1]).sum(axis=-1)
    covered = []
    for values, truth in zip(probabilities, labels, strict=True):
        fitted = PredictionSets.fit(values[:size], truth[:size], coverage, score)
        covered.append(fitted.sets(values[size:])[np.arange(new), truth[size:]].sum())
    return np.array(covered)


@every_score
def test_coverage_given_the_calibration_set_has_its_beta_law(score: Score) -> None:
    """Covered images among m are Binomial(m, c) with c ~ Beta(k, n + 1 − k): beta-binomial.

    The share of R calibration sets with at most j covered images is binomial: 4 standard errors of
    it. The adaptive scores are continuous above 0, and a threshold of 0 needs 46 of 50 labels to be
    the most likely one, which half of them are: its probability is below 1e-9.
    """
    seed, draws, size, new, coverage = 20260108, 2_000, 50, 40, 0.9
    print(f"seed {seed}")
    covered = simulated_coverage(score, coverage, draws, size, new, seed)
    rank = math.ceil(coverage * (size + 1))
    law = betabinom(new, rank, size + 1 - rank)
    for count in range(30, 40):
        expected = law.cdf(count)
        error = math.sqrt(expected * (1 - expected) / draws)
        assert abs((covered <= count).mean() - expected) < 4 * error
    error = law.std() / math.sqrt(draws)
    assert abs(covered.mean() - law.mean()) < 4 * error
    assert law.mean() >= coverage * new


def test_coverage_of_adaptive_sets_may_exceed_the_promise_but_not_fall_below() -> None:
    """A coverage near the accuracy: the threshold is often 0. 4 standard errors of the law."""
    seed, draws, size, new, coverage = 20260109, 2_000, 50, 40, 0.5
    print(f"seed {seed}")
    covered = simulated_coverage(aps, coverage, draws, size, new, seed)
    rank = math.ceil(coverage * (size + 1))
    law = betabinom(new, rank, size + 1 - rank)
    assert covered.mean() > law.mean() - 4 * law.std() / math.sqrt(draws)


@given(
    size=st.integers(1, 400),
    alpha=st.floats(0.01, 0.5),
    confidence=st.sampled_from([0.5, 0.9, 0.99]),
)
def test_conditional_level_promises_the_coverage_of_one_calibration_set(
    size: int, alpha: float, confidence: float
) -> None:
    """The threshold is s_(k) with k = n + 1 − j: P(Beta(k, j) ≥ 1 − α) ≥ confidence."""
    level = conditional_level(alpha, size, confidence)
    scores = np.linspace(0.001, 0.5, size)
    probabilities = np.column_stack([1 - scores, scores])
    fitted = PredictionSets.fit(probabilities, np.zeros(size, int), 1 - level, lac)
    excluded = round(level * (size + 1))
    rank = size + 1 - excluded
    ascending = np.append(np.sort(lac(probabilities)[:, 0]), math.inf)
    assert fitted.threshold == ascending[rank - 1]
    if excluded:
        assert beta.sf(1 - alpha, rank, excluded) >= confidence - 1e-9


@every_score
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_image_without_finite_probabilities_gets_every_label(score: Score, bad: float) -> None:
    known = np.array([[0.8, 0.15, 0.05]] * 20)
    fitted = PredictionSets.fit(known, np.zeros(20, int), 0.9, score)
    sets = fitted.sets(np.array([[0.8, bad, 0.05], [0.8, 0.15, 0.05], [bad, bad, bad]]))
    assert sets.tolist() == [[True] * 3, [True, False, False], [True] * 3]


@every_score
@pytest.mark.parametrize("coverage", np.linspace(0.1, 0.9, 9).tolist())
def test_precision_of_the_probabilities_does_not_matter(score: Score, coverage: float) -> None:
    """The image at the threshold is within its own set, at any precision."""
    single = np.random.default_rng(3).dirichlet(np.ones(9), 99).astype(np.float32)
    double = single.astype(np.float64)
    labels = single.argsort(axis=1)[:, 4]
    fitted = PredictionSets.fit(single, labels, coverage, score)
    assert fitted == PredictionSets.fit(double, labels, coverage, score)
    inside = fitted.sets(single)
    assert (inside == fitted.sets(double)).all()
    assert inside[np.arange(99), labels].sum() == round(100 * coverage)


@pytest.mark.parametrize(
    ("probabilities", "labels", "reason"),
    [
        (np.full(3, 0.5), np.zeros(3, int), r"got shapes \(3,\) and \(3,\)"),
        (np.full((3, 2), 0.5), np.zeros(2, int), r"got shapes \(3, 2\) and \(2,\)"),
        (np.full((3, 2), np.nan), np.zeros(3, int), "must be finite"),
        (np.full((3, 2), 0.5), np.array([0, 1, 2]), "labels must be 0 to 1"),
        (np.full((3, 2), 0.5), np.array([0, -1, 1]), "labels must be 0 to 1"),
    ],
)
def test_calibration_data_that_allow_no_sets(probabilities: Any, labels: Any, reason: str) -> None:
    with pytest.raises(CalibrationError, match=reason):
        PredictionSets.fit(probabilities, labels, 0.9, lac)


@pytest.mark.parametrize("coverage", [0.0, 1.01, -0.5, math.nan])
def test_coverage_that_cannot_be_promised(coverage: float) -> None:
    with pytest.raises(ValueError, match=f"coverage must be within \\(0, 1\\], got {coverage}"):
        PredictionSets.fit(np.full((3, 2), 0.5), np.zeros(3, int), coverage, lac)
