from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from models.density import SHRINKAGE
from models.features import FeatureNeighbours, FeatureSubspaces, RelativeMahalanobis

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]

CLASSES, MEMBERS, UNITS = 3, 2, 7
HALF_PRECISION = 2.0**-11  # relative error of a reference in 16 bits, whose length is at most 1

MANY = 64


def seen(count: int, seed: int = 0, units: int = UNITS) -> tuple[Floats, Classes]:
    """Features of two members, correlated, on scales of their own, about a mean for each class."""
    randomness = np.random.default_rng(seed)
    fixed = np.random.default_rng(99)
    mixing = fixed.normal(size=(MEMBERS, units, units)) * 10.0 ** np.linspace(-1, 1, units)
    means = 30 * fixed.normal(size=(MEMBERS, CLASSES, units))
    classes = randomness.integers(0, CLASSES, count)
    members = [
        mean[classes] + randomness.normal(size=(count, units)) @ mix
        for mean, mix in zip(means, mixing, strict=True)
    ]
    return np.stack(members, axis=1), classes


def unit_rows(features: Floats) -> Floats:
    """Each member's features at length 1/√m, in one row."""
    lengths = np.linalg.norm(features, axis=2, keepdims=True)
    return (features / lengths / np.sqrt(features.shape[1])).reshape(len(features), -1)


def test_share_is_what_principal_components_leave_mean_over_members() -> None:
    known, classes = seen(200)
    new, predicted = seen(40, seed=1)
    for rank in (1, 3):
        found = FeatureSubspaces.fit(known, classes, CLASSES, rank).scores(new, predicted)
        for value, image, label in zip(found, new, predicted, strict=True):
            shares = []
            for member in range(MEMBERS):
                pca = PCA(rank).fit(known[classes == label, member])
                row = image[None, member]
                left = row - pca.inverse_transform(pca.transform(row))
                shares.append(np.linalg.norm(left) / np.linalg.norm(row))
            assert value == pytest.approx(np.mean(shares), rel=1e-3)


def test_share_by_hand() -> None:
    """One member varies along (1, 0) about (0, 3), the other along (0, 1) about the origin."""
    known = np.array([[[5, 3], [0, 1]], [[-5, 3], [0, -1]], [[0, 3], [0, 0]]], float)
    nobody = np.zeros(3, int)
    subspaces = FeatureSubspaces.fit(known, nobody, 1, rank=1)
    new = np.array([[[4, 3], [0, 2]], [[0, 8], [3, 4]], [[6, 8], [3, 0]]], float)
    expected = [0, (5 / 8 + 3 / 5) / 2, (5 / 10 + 1) / 2]
    assert subspaces.scores(new, nobody) == pytest.approx(expected, abs=1e-6)


def test_neighbour_is_the_nearest_of_the_predicted_class() -> None:
    known, classes = seen(300)
    new, predicted = seen(60, seed=1)
    size = MEMBERS * UNITS
    found = FeatureNeighbours.fit(known, classes, CLASSES, size).scores(new, predicted)
    rows, images = unit_rows(known), unit_rows(new)
    for label in range(CLASSES):
        search = NearestNeighbors(n_neighbors=1).fit(rows[classes == label])
        distances, _ = search.kneighbors(images[predicted == label])
        assert found[predicted == label] == pytest.approx(distances[:, 0], abs=HALF_PRECISION)
        assert distances.max() > 20 * HALF_PRECISION


def test_neighbour_among_principal_directions() -> None:
    known, classes = seen(300)
    new, predicted = seen(60, seed=1)
    found = FeatureNeighbours.fit(known, classes, CLASSES, 4).scores(new, predicted)
    pca = PCA(4).fit(unit_rows(known))
    rows, images = unit_rows(known) @ pca.components_.T, unit_rows(new) @ pca.components_.T
    for value, image, label in zip(found, images, predicted, strict=True):
        least = np.linalg.norm(rows[classes == label] - image, axis=1).min()
        assert value == pytest.approx(least, abs=HALF_PRECISION)


def test_references_are_the_first_of_their_class_or_of_all() -> None:
    known, _ = seen(40)
    classes = np.r_[np.zeros(20, int), np.full(20, 2)]
    neighbours = FeatureNeighbours.fit(known, classes, CLASSES, MEMBERS * UNITS, references=5)
    kept = np.r_[0:5, 20:25]
    assert neighbours.bounds.tolist() == [[0, 5], [0, 10], [5, 10]]
    assert neighbours.scores(known[kept], classes[kept]) == pytest.approx(0, abs=HALF_PRECISION)
    assert neighbours.scores(known[kept], np.ones(10, int)) == pytest.approx(0, abs=HALF_PRECISION)
    others = np.r_[5:20, 25:40]
    assert neighbours.scores(known[others], classes[others]).min() > 10 * HALF_PRECISION


def test_length_of_a_members_features_does_not_matter_to_neighbours() -> None:
    known, classes = seen(100)
    new, predicted = seen(30, seed=1)
    neighbours = FeatureNeighbours.fit(known, classes, CLASSES, 4)
    before = neighbours.scores(new, predicted)
    longer = new * np.array([[8.0], [0.25]])
    assert neighbours.scores(longer, predicted) == pytest.approx(before, abs=1e-6)


def shrunk_covariance(within: Floats) -> Floats:
    covariance = np.cov(within, rowvar=False, ddof=0)
    shrunk: Floats = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))
    return shrunk


def test_relative_distance_is_that_of_log_densities() -> None:
    """M_c − M_0 = 2 ln N(φ; μ, Σ + B) − 2 ln N(φ; μ_c, Σ) + ln |Σ + B| − ln |Σ|."""
    known, classes = seen(200)
    new, _ = seen(50, seed=1)
    shares = np.bincount(classes) / len(classes)
    expected = []
    for member in range(MEMBERS):
        values, images = known[:, member], new[:, member]
        means = np.stack([values[classes == label].mean(axis=0) for label in range(CLASSES)])
        mean = values.mean(axis=0)
        within = shrunk_covariance(values - means[classes])
        total = within + ((means - mean).T * shares) @ (means - mean)
        known_to_all = stats.multivariate_normal(mean, total).logpdf(images)
        to_class = [stats.multivariate_normal(each, within).logpdf(images) for each in means]
        change = np.linalg.slogdet(total)[1] - np.linalg.slogdet(within)[1]
        expected.append(2 * known_to_all - 2 * np.max(to_class, axis=0) + change)
    found = RelativeMahalanobis.fit(known, classes, CLASSES).scores(new)
    assert found == pytest.approx(np.mean(expected, axis=0), rel=1e-8)


def test_relative_distance_of_gaussian_features_follows_its_law() -> None:
    """Two classes √λ either side of their mean: λ/(1 + λ) χ'²(1, 1/λ) − 1, with λ = 36.

    They are told apart but once in 10⁹. Both are known by points whose means are 0 and whose
    covariance is the identity, exactly, so the law is exact too.
    """
    seed, count, ratio, units = 20, 4_000, 36.0, 5
    print(f"seed {seed}")
    spread = np.sqrt(units) * np.concatenate([np.eye(units), -np.eye(units)])
    apart = np.sqrt(ratio) * np.eye(units)[0]
    known = np.concatenate([spread + apart, spread - apart])[:, None]
    relative = RelativeMahalanobis.fit(known, np.repeat([0, 1], 2 * units), 2)
    assert relative.ratios == pytest.approx(np.array([[ratio]]))
    new = np.random.default_rng(seed).normal(size=(count, 1, units)) + apart
    law = stats.ncx2(1, 1 / ratio, loc=-1, scale=ratio / (1 + ratio))
    scores = relative.scores(new)
    assert abs(scores.mean() - law.mean()) < 4 * law.std() / np.sqrt(count)
    assert law.mean() == pytest.approx(0, abs=1e-12)
    two_sided = 2 * stats.norm.sf(4)  # what 4 standard errors are to a mean
    assert stats.kstest(scores, law.cdf).pvalue > two_sided


def test_relative_distance_ignores_what_no_class_differs_in() -> None:
    known, classes = seen(200)
    new, _ = seen(30, seed=1)
    before = RelativeMahalanobis.fit(known, classes, CLASSES).scores(new)
    silent = np.concatenate([known, np.full((200, MEMBERS, 1), 0.1)], axis=2)
    relative = RelativeMahalanobis.fit(silent, classes, CLASSES)
    loud = np.concatenate([new, np.full((30, MEMBERS, 1), 50.0)], axis=2)
    assert relative.scores(loud) == pytest.approx(before, rel=1e-6)


def test_relative_distance_of_a_single_class_is_nothing() -> None:
    known, _ = seen(50)
    relative = RelativeMahalanobis.fit(known, np.zeros(50, int), 1)
    assert relative.scores(known).tolist() == [0.0] * 50


def test_more_classes_than_units_and_a_class_of_no_image() -> None:
    known, _ = seen(400, units=3)
    classes = np.arange(400) % 8
    relative = RelativeMahalanobis.fit(known, classes, 9)
    assert relative.discriminants.shape == (MEMBERS, 3, 3)
    assert relative.centres[:, 8] == pytest.approx(0, abs=1e-12)
    assert np.isfinite(relative.scores(known)).all()


@pytest.mark.parametrize("units", [1, 7, 128])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_image_alone_equals_itself_in_any_batch_to_the_bit(
    units: int, dtype: type[np.floating]
) -> None:
    known, classes = seen(3 * MANY, units=units)
    new, predicted = seen(2 * MANY + 5, seed=3, units=units)
    images, order = new.astype(dtype), np.random.default_rng(4).permutation(len(new))
    subspaces = FeatureSubspaces.fit(known, classes, CLASSES, rank=3)
    neighbours = FeatureNeighbours.fit(known, classes, CLASSES)
    relative = RelativeMahalanobis.fit(known, classes, CLASSES)

    def judge(chosen: NDArray[np.int64] | slice) -> Floats:
        part, labels = images[chosen], predicted[chosen]
        judged = (subspaces.scores(part, labels), neighbours.scores(part, labels))
        return np.stack([*judged, relative.scores(part)])

    together = judge(slice(None))
    assert together.shape == (3, len(new))
    assert together.dtype == np.float64
    assert np.array_equal(judge(order), together[:, order])
    for index in (0, 1, MANY - 1, MANY, 2 * MANY, len(new) - 1):
        assert np.array_equal(judge(slice(index, index + 1)), together[:, index : index + 1])


def test_what_a_file_gives_back_scores_alike_to_the_bit() -> None:
    """A file has arrays row by row; in another order in memory products round otherwise."""
    known, classes = seen(300, units=128)
    new, predicted = seen(40, seed=1, units=128)
    subspaces = FeatureSubspaces.fit(known, classes, CLASSES, rank=10)
    neighbours = FeatureNeighbours.fit(known, classes, CLASSES)
    relative = RelativeMahalanobis.fit(known, classes, CLASSES)
    for fitted, given in (
        (subspaces, (new, predicted)),
        (neighbours, (new, predicted)),
        (relative, (new,)),
    ):
        arrays = {field.name: getattr(fitted, field.name).copy("C") for field in fields(fitted)}
        assert type(fitted)(**arrays).scores(*given).tolist() == fitted.scores(*given).tolist()


def test_members_beyond_those_known_are_not_looked_at() -> None:
    known, classes = seen(100)
    more = np.concatenate([known, np.full((100, 3, UNITS), np.nan)], axis=1)
    subspaces = FeatureSubspaces.fit(known, classes, CLASSES, rank=3)
    neighbours = FeatureNeighbours.fit(known, classes, CLASSES)
    relative = RelativeMahalanobis.fit(known, classes, CLASSES)
    for judge in (subspaces.scores, neighbours.scores):
        assert judge(more, classes).tolist() == judge(known, classes).tolist()
    assert relative.scores(more).tolist() == relative.scores(known).tolist()


def test_score_of_what_is_not_a_number_is_none_either() -> None:
    known, classes = seen(100)
    broken = known[:3].copy()
    broken[1, 0, 2] = np.nan
    subspaces = FeatureSubspaces.fit(known, classes, CLASSES, rank=3)
    neighbours = FeatureNeighbours.fit(known, classes, CLASSES)
    relative = RelativeMahalanobis.fit(known, classes, CLASSES)
    for scores in (
        subspaces.scores(broken, classes[:3]),
        neighbours.scores(broken, classes[:3]),
        relative.scores(broken),
    ):
        assert np.isnan(scores).tolist() == [False, True, False]


def test_features_of_nothing() -> None:
    """All units silent: no direction, no share; far from every class that has some."""
    known, classes = seen(100)
    silent = np.zeros((1, MEMBERS, UNITS))
    subspaces = FeatureSubspaces.fit(known, classes, CLASSES, rank=3)
    neighbours = FeatureNeighbours.fit(known, classes, CLASSES)
    assert subspaces.scores(silent, classes[:1])[0] > subspaces.scores(known, classes).max()
    assert neighbours.scores(silent, classes[:1])[0] > neighbours.scores(known, classes).max()
