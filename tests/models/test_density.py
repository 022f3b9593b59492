from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import mahalanobis
from sklearn.decomposition import PCA

from models.density import SHRINKAGE, ClassGaussians, ClassSubspaces

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]

MANY = 64


def described(count: int, features: int, seed: int = 0) -> tuple[Floats, Classes]:
    """Descriptions whose features are correlated, on scales of their own, about 3 means."""
    randomness = np.random.default_rng(seed)
    mixing = randomness.normal(size=(features, features)) * 10.0 ** np.linspace(-2, 2, features)
    classes = randomness.integers(0, 3, count)
    means = randomness.normal(size=(3, features)) * 100
    return means[classes] + randomness.normal(size=(count, features)) @ mixing, classes


def test_distance_is_that_of_mahalanobis() -> None:
    known, classes = described(200, 6)
    new, predicted = described(90, 6, seed=1)
    found = ClassGaussians.fit(known, classes, 3).distances(new, predicted)
    for value, image, label in zip(found, new, predicted, strict=True):
        same = known[classes == label]
        covariance = np.cov(same, rowvar=False, ddof=0)
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))
        expected = mahalanobis(image, same.mean(axis=0), np.linalg.inv(shrunk)) ** 2
        assert value == pytest.approx(expected, rel=1e-6)


def test_distance_by_hand() -> None:
    """Two features that do not vary together: squares in units of their standard deviations."""
    known = np.array([[0, 0], [0, 4], [2, 0], [2, 4]])
    gaussians = ClassGaussians.fit(known, np.zeros(4, int), 1)
    found = gaussians.distances(np.array([[1, 2], [2, 2], [1, 0], [4, 8]]), np.zeros(4, int))
    assert found == pytest.approx([0, 1, 1, 18])


def test_shrinkage_bounds_what_the_training_images_never_did() -> None:
    """Two features that are always equal have correlation 0.98: (1, −1) is at 2 / (1 − 0.98)."""
    known = np.repeat([[-1.0], [1.0]], 2, axis=1)
    gaussians = ClassGaussians.fit(known, np.zeros(2, int), 1)
    found = gaussians.distances(np.array([[1.0, -1.0], [1.0, 1.0]]), np.zeros(2, int))
    assert found == pytest.approx([2 / 0.02, 2 / 1.98])


def test_class_of_fewer_than_two_images_is_judged_by_all() -> None:
    known, _ = described(41, 5)
    classes = np.r_[0, np.ones(40, int)]
    nobody = np.zeros(41, int)
    for few in (0, 2):
        gaussians = ClassGaussians.fit(known, classes, 3)
        pooled = ClassGaussians.fit(known, nobody, 1)
        expected = pooled.distances(known, nobody)
        assert gaussians.distances(known, np.full(41, few)).tolist() == expected.tolist()
        assert gaussians.distances(known, classes)[5] != pytest.approx(expected[5], rel=1e-3)
        subspaces = ClassSubspaces.fit(known, classes, 3, rank=2)
        all_of_them = ClassSubspaces.fit(known, nobody, 1, rank=2).residuals(known, nobody)
        assert subspaces.residuals(known, np.full(41, few)).tolist() == all_of_them.tolist()


@pytest.mark.parametrize("level", [0.0, 0.1, 1e6])
def test_feature_that_never_varied(level: float) -> None:
    known, classes = described(60, 4)
    constant = np.column_stack([known, np.full(60, level)])
    before = ClassGaussians.fit(known, classes, 3).distances(known, classes)
    gaussians = ClassGaussians.fit(constant, classes, 3)
    assert gaussians.distances(constant, classes) == pytest.approx(before, rel=1e-9)
    constant[:, 4] += 1
    assert gaussians.distances(constant, classes) == pytest.approx(np.full(60, 1e18), rel=1e-6)


def test_residual_is_what_principal_components_leave() -> None:
    known, classes = described(150, 12)
    new, predicted = described(90, 12, seed=2)
    for rank in (1, 3, 8):
        found = ClassSubspaces.fit(known, classes, 3, rank).residuals(new, predicted)
        for label in range(3):
            pca = PCA(rank).fit(known[classes == label])
            images = new[predicted == label]
            left = images - pca.inverse_transform(pca.transform(images))
            size = np.linalg.norm(images - pca.mean_, axis=1)
            error = np.abs(found[predicted == label] - np.linalg.norm(left, axis=1))
            assert (error < 1e-3 * size).all()


def test_residual_by_hand() -> None:
    """The class varies along (1, 1, 0) and, less, along (0, 0, 1), about (0, 0, 5)."""
    known = np.array([[3, 3, 5], [-3, -3, 5], [0, 0, 6], [0, 0, 4]])
    images = np.array([[9, 9, 5], [1, -1, 5], [0, 0, 8], [2, -2, 8]])
    nobody = np.zeros(4, int)
    one, two = (ClassSubspaces.fit(known, nobody, 1, rank).residuals for rank in (1, 2))
    assert one(images, nobody) == pytest.approx([0, 2**0.5, 3, 17**0.5], abs=1e-2)
    assert two(images, nobody) == pytest.approx([0, 2**0.5, 0, 8**0.5], abs=1e-2)


def test_basis_is_orthonormal_and_leaves_nothing_at_full_rank() -> None:
    known, classes = described(80, 7)
    subspaces = ClassSubspaces.fit(known, classes, 3, rank=7)
    for basis in subspaces.basis:
        assert basis @ basis.T == pytest.approx(np.eye(7), abs=1e-5)
    size = np.linalg.norm(known - subspaces.mean[classes], axis=1)
    assert (subspaces.residuals(known, classes) < 1e-3 * size).all()
    mean = subspaces.residuals(subspaces.mean, np.arange(3))
    assert mean.tolist() == [0, 0, 0]


@pytest.mark.parametrize("features", [1, 20, 196])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_image_alone_equals_itself_in_any_batch_to_the_bit(
    features: int, dtype: type[np.floating]
) -> None:
    known, classes = described(3 * MANY, features)
    new, predicted = described(2 * MANY + 5, features, seed=3)
    images, order = new.astype(dtype), np.random.default_rng(4).permutation(len(new))
    gaussians = ClassGaussians.fit(known, classes, 3)
    subspaces = ClassSubspaces.fit(known, classes, 3, rank=40)
    for judge in (gaussians.distances, subspaces.residuals):
        together = judge(images, predicted)
        assert together.shape == (len(new),)
        assert together.dtype == np.float64
        assert np.array_equal(judge(images[order], predicted[order]), together[order])
        for index in (0, 1, MANY - 1, MANY, 2 * MANY, len(new) - 1):
            alone = slice(index, index + 1)
            assert judge(images[alone], predicted[alone]).tolist() == [together[index]]


def test_where_images_never_differ_a_subspace_is_zero() -> None:
    known, classes = described(3 * MANY, 20)
    known[:, 5:9] = 0.25
    fitted = ClassSubspaces.fit(known, classes, int(classes.max()) + 1, 4)
    assert not fitted.basis[:, :, 5:9].any()
    assert np.linalg.norm(fitted.basis, axis=2) == pytest.approx(1, abs=1e-6)
