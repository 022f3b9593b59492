from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from benchmarks.feature_detectors import FeatureDetectors
from models.density import SHRINKAGE

UNITS = 5


def exact(distance: float) -> np.ndarray:
    """Points of two classes, `distance` either side of 0, each with covariance 1, exactly."""
    spread = np.sqrt(UNITS) * np.concatenate([np.eye(UNITS), -np.eye(UNITS)])
    apart = distance * np.eye(UNITS)[0]
    return np.concatenate([spread + apart, spread - apart])


def test_mahalanobis_of_gaussian_features_is_chi_squared() -> None:
    seed, count = 21, 4_000
    print(f"seed {seed}")
    known = exact(8.0)[:, None]
    detectors = FeatureDetectors.fit(known, np.repeat([0, 1], 2 * UNITS), 2)
    new = np.random.default_rng(seed).normal(size=(count, 1, UNITS)) - 8 * np.eye(UNITS)[0]
    scores = detectors.scores["features: Mahalanobis"](new, np.zeros(count, int))
    error = np.sqrt(2 * UNITS / count)
    assert abs(scores.mean() - UNITS) < 4 * error
    assert stats.kstest(scores, stats.chi2(UNITS).cdf).pvalue > 2 * stats.norm.sf(4)


def test_density_is_that_of_a_mixture_mean_over_members() -> None:
    randomness = np.random.default_rng(0)
    classes = randomness.integers(0, 3, 300)
    known = (
        randomness.normal(size=(300, 2, UNITS)) * np.arange(1, UNITS + 1) + classes[:, None, None]
    )
    new = randomness.normal(size=(40, 4, UNITS)) * 3
    expected = []
    for member in range(2):
        density = np.zeros(40)
        for label in range(3):
            same = known[classes == label, member]
            covariance = np.cov(same, rowvar=False, ddof=0)
            shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))
            law = stats.multivariate_normal(same.mean(axis=0), shrunk)
            density += np.mean(classes == label) * law.pdf(new[:, member])
        expected.append(-np.log(density))
    scores = FeatureDetectors.fit(known, classes, 3).scores["features: density"]
    assert scores(new, np.zeros(40, int)) == pytest.approx(np.mean(expected, axis=0))


def test_variance_and_neighbour() -> None:
    randomness = np.random.default_rng(1)
    known = randomness.normal(size=(200, 3, UNITS))
    new = randomness.normal(size=(30, 3, UNITS))
    nobody = np.zeros(200, int)
    scores = FeatureDetectors.fit(known, nobody, 1).scores
    variance = [np.var(image[:, unit]) for image in new for unit in range(UNITS)]
    expected = np.reshape(variance, (30, UNITS)).mean(axis=1)
    assert scores["features: variance"](new, nobody[:30]) == pytest.approx(expected)

    def rows(features: np.ndarray) -> np.ndarray:
        units = features / np.linalg.norm(features, axis=2, keepdims=True) / np.sqrt(3)
        return units.reshape(len(features), -1)

    distances, _ = NearestNeighbors(n_neighbors=1).fit(rows(known)).kneighbors(rows(new))
    assert scores["features: 1-NN"](new, nobody[:30]) == pytest.approx(
        distances[:, 0], abs=2.0**-11
    )
