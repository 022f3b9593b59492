from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from training.outliers import spoilt

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

FAMILIES = ("halves", "sides", "union", "tiles", "erased", "warped", "bold", "thin", "blurred")
FAMILIES = (*FAMILIES, "binary", "shrunk")
RANDOM = {"halves", "sides", "union", "tiles", "erased", "warped"}
SHAPES = [(8, 8, 1), (9, 12, 1), (11, 7, 3), (28, 28, 1), (3, 2, 1), (1, 1, 3)]


def random_images(count: int, *shape: int) -> tuple[Images, Labels]:
    randomness = np.random.default_rng(count)
    images = randomness.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.arange(count) % 3


def numbered(height: int, width: int, channels: int = 1) -> tuple[Images, Labels]:
    """Image i has the value i everywhere; 200 images of 4 classes, one of them rare."""
    numbers = np.arange(200, dtype=np.uint8)[:, None, None, None]
    labels = np.where(np.arange(200) < 4, 0, 1 + np.arange(200) % 3)
    return np.broadcast_to(numbers, (200, height, width, channels)), labels


@pytest.mark.parametrize("shape", SHAPES)
def test_every_family_has_an_outlier_of_each_image(shape: tuple[int, ...]) -> None:
    images, labels = random_images(12, *shape)
    before = images.copy()
    images.flags.writeable = False
    found = spoilt(images, labels, seed=1)
    assert tuple(found) == FAMILIES
    for outliers in found.values():
        assert outliers.dtype == np.uint8
        assert outliers.shape == images.shape
    assert np.array_equal(images, before)


def test_seed_decides_what_is_random_and_nothing_else() -> None:
    images, labels = random_images(12, 9, 8, 3)
    first, again, other = (spoilt(images, labels, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first[family], again[family]) for family in FAMILIES)
    differing = {name for name in FAMILIES if not np.array_equal(first[name], other[name])}
    assert differing == RANDOM


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_halves_are_of_two_images_of_different_classes(
    height: int, width: int, channels: int
) -> None:
    images, labels = numbered(height, width, channels)
    found = spoilt(images, labels, seed=1)
    partners = found["halves"][:, -1, 0, 0].astype(int)
    assert (labels[partners] != labels).all()
    for label in (1, 2, 3):
        met = partners[labels == label]
        assert set(labels[met]) | {0} == {0, 1, 2, 3} - {label}
        assert met.max() > 150
        assert len(set(met)) > 30
    for family, axis, half in (("halves", 1, height // 2), ("sides", 2, width // 2)):
        own, foreign = np.split(found[family], [half], axis=axis)
        assert (own == images[:, :1, :1]).all()
        assert (foreign == partners[:, None, None, None]).all()
    assert np.array_equal(found["union"], np.maximum(images, images[partners]))


def test_halves_and_union_keep_the_place_of_every_pixel() -> None:
    images, _ = random_images(2, 5, 4, 3)
    found = spoilt(images, np.array([0, 1]), seed=1)
    one, other = images
    assert np.array_equal(found["halves"][0], np.concatenate([one[:2], other[2:]]))
    assert np.array_equal(found["sides"][1], np.hstack([other[:, :2], one[:, 2:]]))
    assert np.array_equal(found["union"], [np.maximum(one, other)] * 2)


def test_tiles_are_whole_and_each_is_there_once() -> None:
    """The tiles of 2 × 3 pixels are told by their values, and pixels within them by the rest."""
    places = np.arange(16).reshape(4, 4).repeat(2, axis=0).repeat(3, axis=1)
    within = np.tile(np.arange(6).reshape(2, 3), (4, 4))
    image = np.pad(places * 6 + within, ((0, 1), (0, 2)), constant_values=255).astype(np.uint8)
    images = np.repeat(image[None, ..., None], 300, axis=0)
    found = spoilt(images, np.arange(300) % 2, seed=1)["tiles"][..., 0]
    assert (found[:, 8:] == 255).all()
    assert (found[:, :, 12:] == 255).all()
    inside = found[:, :8, :12]
    assert (inside % 6 == within).all()
    tiles = (inside // 6).reshape(300, 4, 2, 4, 3)
    assert (tiles == tiles[:, :, :1, :, :1]).all()
    order = tiles[:, :, 0, :, 0].reshape(300, 16)
    assert (np.sort(order) == np.arange(16)).all()
    assert len(np.unique(order, axis=0)) == 300
    assert all(set(order[:, place]) == set(range(16)) for place in range(16))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5)])
def test_one_half_is_erased(height: int, width: int) -> None:
    images, labels = random_images(80, height, width, 3)
    images[:, 1:-1, 1:-1] |= 1
    images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1] = ((20, 40, 60),) * 4
    halves = np.zeros((4, height, width), bool)
    halves[0, : height // 2], halves[1, height // 2 :] = True, True
    halves[2, :, : width // 2], halves[3, :, width // 2 :] = True, True
    erased = (spoilt(images, labels, seed=1)["erased"] != images).any(axis=3)
    inner = np.zeros((height, width), bool)
    inner[1:-1, 1:-1] = True
    which = [[np.array_equal(one, half & inner) for half in halves] for one in erased]
    assert (np.sum(which, axis=1) == 1).all()
    assert np.any(which, axis=0).all()
    found = spoilt(images, labels, seed=1)["erased"]
    assert (found[erased] == (20, 40, 60)).all()


@pytest.mark.parametrize(("height", "width"), [(28, 28), (40, 20)])
def test_warped_is_bent_by_waves(height: int, width: int) -> None:
    """In images of their own row numbers, a column is shifted as one, twice up and down."""
    rows, columns = np.indices((height, width), dtype=np.uint8)
    for numbers, size, across in ((rows, height, width), (columns.T, width, height)):
        upright = numbers if numbers is rows else numbers.T
        images = np.repeat(upright[None, ..., None], 50, axis=0)
        found = spoilt(images, np.arange(50) % 2, seed=1)["warped"][..., 0].astype(int)
        lines = found if numbers is rows else found.transpose(0, 2, 1)
        shift = lines[:, size // 2] - size // 2
        expected = np.clip(np.arange(size)[:, None] + shift[:, None, :], 0, size - 1)
        assert np.array_equal(lines, expected)
        assert np.abs(shift).max() == round(0.12 * size)
        assert np.array_equal(shift, -np.roll(shift, across // 4, axis=1))
        assert len(np.unique(shift, axis=0)) > 25


@pytest.mark.parametrize("shape", SHAPES)
def test_pen_is_made_bold_and_thin_as_by_scipy(shape: tuple[int, ...]) -> None:
    images, labels = random_images(5, *shape)
    found = spoilt(images, labels, seed=1)
    window = (1, 3, 3, 1)
    brightest = ndimage.maximum_filter(images, window, mode="nearest")
    assert np.array_equal(found["bold"], brightest)
    assert np.array_equal(found["thin"], ndimage.minimum_filter(images, window, mode="nearest"))


def test_blur_of_an_edge_has_six_percent_of_the_height_as_its_width() -> None:
    """The slope of a blurred edge is the filter: its variance is σ², within rounding to 1/255."""
    images = np.zeros((2, 50, 60, 3), np.uint8)
    images[:, :, 30:] = 255
    found = spoilt(images, np.array([0, 1]), seed=1)["blurred"]
    assert (found == found[:, :1]).all()
    slope = np.diff(found[0, 0, :, 0].astype(float)) / 255
    places = np.arange(1, 60)
    assert slope.sum() == pytest.approx(1)
    assert slope @ places == pytest.approx(30, abs=0.05)
    assert slope @ (places - 30.0) ** 2 == pytest.approx((0.06 * 50) ** 2, rel=0.05)


def test_binary_is_black_and_white() -> None:
    image = np.array([0, 1, 127, 128, 254, 255], np.uint8).reshape(1, 2, 3, 1)
    found = spoilt(image.repeat(2, axis=0), np.array([0, 1]), seed=1)["binary"]
    assert found[0].ravel().tolist() == [0, 0, 0, 255, 255, 255]


def test_shrunk_leaves_no_pixel_out() -> None:
    """Of 3 pixels become 2: the mean of those whose centres they cover, (30 + 60) / 2 and 90."""
    image = np.tile(np.array([30, 60, 90], np.uint8), (9, 3))[None, ..., None]
    found = spoilt(image.repeat(2, axis=0), np.array([0, 1]), seed=1)["shrunk"]
    assert (found[0, 1:7, 1:7, 0] == [45, 90] * 3).all()


def test_shrunk_to_two_thirds_on_its_background_by_hand() -> None:
    """Blocks of 3 × 3 become blocks of 2 × 2; the median of the border fills the rest."""
    blocks, _ = random_images(2, 3, 4, 3)
    images = blocks.repeat(3, axis=1).repeat(3, axis=2)
    found = spoilt(images, np.array([0, 1]), seed=1)["shrunk"]
    window = (slice(None), slice(1, 7), slice(2, 10))
    assert np.array_equal(found[window], blocks.repeat(2, axis=1).repeat(2, axis=2))
    ring = np.ones((9, 12), bool)
    ring[1:-1, 1:-1] = False
    outside = np.ones((9, 12), bool)
    outside[1:7, 2:10] = False
    for image, small in zip(images, found, strict=True):
        median = np.median(image[ring], axis=0).astype(np.uint8)
        assert (small[outside] == median).all()
