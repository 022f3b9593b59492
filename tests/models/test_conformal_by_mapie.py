"""The same sets, scores and p-values as MAPIE (Taquet et al. 2022, arXiv 2207.12274)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from mapie.conformity_scores.sets.aps import APSConformityScore
from mapie.exchangeability_testing import OnlineMartingaleTest
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from models.conformal import ClassConditionalTest, ConformalTest
from models.prediction_sets import PredictionSets, aps, lac, raps

SEED, SIZE, NEW, K = 20261122, 199, 100, 5


class Answered(ClassifierMixin, BaseEstimator):
    """A classifier whose inputs are its probabilities."""

    def __init__(self) -> None:
        self.classes_ = np.arange(K)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: NDArray[np.float64], y: NDArray[np.int64]) -> Answered:
        return self

    def predict_proba(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return X

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.int64]:
        return X.argmax(axis=1)


class Ones:
    """In place of the random tie-breaker U of smoothed p-values: ties count in full."""

    def uniform(self) -> float:
        return 1.0


def draw(seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities [n, K] that are not quite those of the labels [n]."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(K, 0.4), SIZE + NEW)
    actual = np.cumsum(0.8 * probabilities + 0.2 / K, axis=1)
    return probabilities, (rng.random((SIZE + NEW, 1)) > actual[:, :-1]).sum(axis=1)


@pytest.mark.parametrize("coverage", [0.3, 0.75, 0.9, 0.99])
def test_lac_sets(coverage: float) -> None:
    print(f"seed {SEED}")
    probabilities, labels = draw(SEED)
    theirs = SplitConformalClassifier(Answered(), confidence_level=coverage, prefit=True)
    theirs.conformalize(probabilities[:SIZE], labels[:SIZE])
    _, expected = theirs.predict_set(probabilities[SIZE:])
    sets = PredictionSets.fit(probabilities[:SIZE], labels[:SIZE], coverage, lac)
    inside = sets.sets(probabilities[SIZE:])
    assert (inside == expected[:, :, 0]).all()
    assert 0 < inside.mean() < 1


def test_aps_and_raps_scores_of_the_true_labels() -> None:
    """Theirs is randomised: Σ p̄_j up to y, less U p̄_y; U = 1 leaves the labels before y."""
    print(f"seed {SEED}")
    probabilities, labels = draw(SEED)
    rows = np.arange(labels.size)
    up_to, rank = APSConformityScore.get_true_label_cumsum_proba(
        labels, probabilities, np.arange(K)
    )
    before = up_to[:, 0] - probabilities[rows, labels]
    assert aps(probabilities)[rows, labels] == pytest.approx(before, abs=1e-12)
    penalised = before + 0.1 * np.maximum(rank - 2, 0)
    scores = raps(probabilities, penalty=0.1, free=2)
    assert scores[rows, labels] == pytest.approx(penalised, abs=1e-12)
    assert set(rank) == set(range(1, K + 1))


def test_p_values_over_all_images_and_within_classes() -> None:
    """Scores in tenths, so that ties are many."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    scores, classes = rng.integers(0, 60, SIZE + NEW) / 10, rng.integers(0, 3, SIZE + NEW)
    known, its_class, new, new_class = scores[:SIZE], classes[:SIZE], scores[SIZE:], classes[SIZE:]
    theirs = OnlineMartingaleTest()
    theirs.rng = Ones()
    marginal = [theirs.compute_p_value(score, known) for score in new]
    within = [
        theirs.compute_p_value(score, known[its_class == label])
        for score, label in zip(new, new_class, strict=True)
    ]
    assert ConformalTest.fit(known).p_values(new) == pytest.approx(marginal, abs=1e-15)
    by_class = ClassConditionalTest.fit(known, its_class).p_values(new, new_class)
    assert by_class == pytest.approx(within, abs=1e-15)
    assert not math.isclose(float(np.abs(np.subtract(marginal, within)).max()), 0, abs_tol=1e-3)
