from __future__ import annotations

import math

import numpy as np
import pytest

from training import data
from training.ambiguous import Images, ambiguous, blend
from training.data import DataError, Dataset, from_arrays
from training.metrics import auroc


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits", "test")


def overlap(first: Images, second: Images) -> float:
    a, b = first.astype(float).ravel(), second.astype(float).ravel()
    return float(2 * (a @ b) / (a @ a + b @ b))


def test_pairs_by_exhaustion(digits: Dataset) -> None:
    """Every image with its best partner of another class, in falling order, none twice."""
    few = digits.select(np.arange(70))
    best = []
    for i, label in enumerate(few.labels):
        others = [j for j, other in enumerate(few.labels) if other != label]
        partner = max(others, key=lambda j: overlap(few.images[i], few.images[j]))
        best.append((overlap(few.images[i], few.images[partner]), i, partner))
    expected: list[tuple[int, int]] = []
    for _, i, j in sorted(best, key=lambda each: -each[0]):
        if not {i, j} & {k for pair in expected for k in pair}:
            expected.append((i, j))
    images, labels = ambiguous(few)
    chosen = np.array(expected[:7])
    assert images.images.tolist() == blend(*few.images[chosen.T]).tolist()
    assert labels.tolist() == few.labels[chosen].tolist()
    assert images.labels.tolist() == labels[:, 0].tolist()
    assert (labels[:, 0] != labels[:, 1]).all()
    assert images.classes == few.classes


def test_blocks_do_not_matter(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = ambiguous(digits)
    monkeypatch.setattr("training.ambiguous.BLOCK", 77)
    again, same = ambiguous(digits)
    assert images.sha256 == again.sha256
    assert labels.tolist() == same.tolist()


def test_blends_of_near_pairs_look_more_like_digits_than_those_of_any_pairs(
    digits: Dataset,
) -> None:
    """Distance to the nearest training digit; n blends of either kind.

    If the kinds did not differ the AUROC would be 1/2 with standard error
    sqrt((2n + 1) / (12 n²)) (Mann & Whitney 1947): 4 of these.
    """
    seed = 20260401
    print(f"seed {seed}")
    train = data.load("digits", "train").images.reshape(-1, 64).astype(float)
    near, _ = ambiguous(digits)
    size = len(near)
    random = np.random.default_rng(seed)
    pairs = random.choice(len(digits), (10 * size, 2))
    pairs = pairs[digits.labels[pairs[:, 0]] != digits.labels[pairs[:, 1]]][:size]

    def distance(images: Images) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        rows = images.reshape(-1, 1, 64).astype(float)
        return np.array([((row - train) ** 2).sum(axis=1).min() for row in rows])

    separation = auroc(distance(near.images), distance(blend(*digits.images[pairs.T])))
    assert separation > 0.5 + 4 * math.sqrt((2 * size + 1) / (12 * size**2))


def test_blend_keeps_black_white_and_the_half_and_steepens_the_rest() -> None:
    first = np.array([0, 255, 255, 255, 0], np.uint8).reshape(1, 1, 5, 1)
    second = np.array([0, 255, 0, 127, 128], np.uint8).reshape(1, 1, 5, 1)
    black, white, half, bright, dim = blend(first, second).ravel().tolist()
    assert (black, white, half) == (0, 255, 128)
    assert bright == round(255 * (382 / 510) ** 2 * (3 - 2 * 382 / 510))
    assert bright > 382 / 2
    assert dim < 128 / 2
    assert blend(first, second).tolist() == blend(second, first).tolist()
    assert blend(first, second).dtype == np.uint8


def test_black_images_are_no_trouble() -> None:
    pixels = np.zeros((4, 2, 2, 3), np.uint8)
    pixels[2:, 0] = 200
    images, labels = ambiguous(from_arrays(pixels, np.array([0, 0, 0, 1]), ("a", "b")))
    assert images.images.shape == (1, 2, 2, 3)
    assert labels.tolist() == [[0, 1]]
    assert images.images.tolist() == blend(pixels[2:3], pixels[3:]).tolist()


def test_one_class_is_never_ambiguous(digits: Dataset) -> None:
    ones = digits.select(np.flatnonzero(digits.labels == 1))
    with pytest.raises(DataError, match="'digits': ambiguous images need images of two classes"):
        ambiguous(ones)
