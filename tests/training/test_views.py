from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from training.views import FRAME, add_noise, blur, frame, occlude, rotate

Images = NDArray[np.uint8]
SEED = 7


def noise(*shape: int) -> Images:
    print(f"seed {SEED}")
    return np.random.default_rng(SEED).integers(0, 256, shape).astype(np.uint8)


def centre(image: Images) -> tuple[float, float]:
    mass = image.sum(axis=2, dtype=float)
    rows, columns = np.indices(mass.shape)
    return float((rows * mass).sum() / mass.sum()), float((columns * mass).sum() / mass.sum())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_quarter_turn_is_exact_and_anticlockwise(channels: int) -> None:
    images = noise(3, 9, 9, channels)
    assert np.array_equal(rotate(images, 90), np.rot90(images, axes=(1, 2)))
    assert np.array_equal(rotate(images, 0), images)


def test_a_turned_disc_stays_and_its_corners_are_black() -> None:
    rows, columns = np.indices((28, 28)) - 13.5
    disc = (200 * (np.hypot(rows, columns) < 9)).astype(np.uint8)[None, ..., None]
    turned = rotate(disc, 30).astype(int)
    assert np.abs(turned - disc).mean() < 5
    white = rotate(np.full((1, 28, 28, 1), 255, np.uint8), 45)
    assert white[0, 0, 0, 0] == 0
    assert white[0, 14, 14, 0] == 255


@pytest.mark.parametrize("shape", [(4, 28, 28, 1), (4, 28, 28, 3), (2, 40, 40, 1), (2, 16, 16, 1)])
def test_a_frame_of_noise_has_a_dark_border_and_its_mass_in_the_middle(
    shape: tuple[int, ...],
) -> None:
    framed = frame(noise(*shape))
    assert framed.shape == (shape[0], FRAME, FRAME, shape[3])
    assert framed.dtype == np.uint8
    for image in framed:
        assert centre(image) == pytest.approx((13.5, 13.5), abs=0.5)
        rows, columns = np.nonzero(image.sum(axis=2))
        assert np.ptp(rows) == np.ptp(columns) == 19


@pytest.mark.parametrize("corner", [(0, 0), (0, 20), (20, 0), (14, 7)])
def test_a_small_mark_moves_to_the_middle(corner: tuple[int, int]) -> None:
    images = np.zeros((1, 28, 28, 1), np.uint8)
    images[0, corner[0] : corner[0] + 7, corner[1] : corner[1] + 7] = 255
    framed = frame(images)
    assert centre(framed[0]) == pytest.approx((13.5, 13.5), abs=0.5)
    assert framed.sum() == pytest.approx(255 * 49 * (20 / 28) ** 2, rel=0.01)


def test_a_digit_that_is_framed_already_only_shrinks() -> None:
    """A square of 14 in the middle becomes one of 10 in the middle, of the same brightness."""
    images = np.zeros((1, 28, 28, 1), np.uint8)
    images[0, 7:21, 7:21] = 180
    expected = np.zeros((FRAME, FRAME), np.uint8)
    expected[9:19, 9:19] = 180
    assert np.array_equal(frame(images)[0, ..., 0], expected)


def test_an_empty_image_stays_empty() -> None:
    assert not frame(np.zeros((2, 28, 28, 1), np.uint8)).any()


def test_images_do_not_disturb_each_other() -> None:
    images = noise(5, 28, 28, 1)
    assert np.array_equal(frame(images[::-1]), frame(images)[::-1])
    assert np.array_equal(rotate(images[::-1], 30), rotate(images, 30)[::-1])
    assert np.array_equal(blur(images[::-1], 0.1), blur(images, 0.1)[::-1])


def test_noise_has_the_deviation_it_says_and_another_seed_is_other_noise() -> None:
    """Of n values of 128 with σ = 25.5: s² of normal draws has a standard error of σ² √(2/n)."""
    print("seeds 1, 2")
    images = np.full((50, 28, 28, 1), 128, np.uint8)
    noisy = add_noise(images, 0.1, 1).astype(float) - 128
    size, variance = noisy.size, 25.5**2 + 1 / 12
    assert abs(noisy.mean()) < 4 * math.sqrt(variance / size)
    assert abs(noisy.var() - variance) < 4 * variance * math.sqrt(2 / size)
    assert np.array_equal(add_noise(images, 0.1, 1), add_noise(images, 0.1, 1))
    assert not np.array_equal(add_noise(images, 0.1, 1), add_noise(images, 0.1, 2))
    assert np.array_equal(add_noise(images, 0.0, 1), images)


def test_noise_is_clipped_not_wrapped() -> None:
    """Black stays where 25.5 ξ ≤ 1/2; nothing is brighter than 6 deviations."""
    print("seed 1")
    black = add_noise(np.zeros((20, 28, 28, 3), np.uint8), 0.1, 1)
    share = NormalDist().cdf(0.5 / 25.5)
    error = math.sqrt(share * (1 - share) / black.size)
    assert black.dtype == np.uint8
    assert abs((black == 0).mean() - share) < 4 * error
    assert black.max() < 6 * 25.5


@pytest.mark.parametrize(("height", "std"), [(28, 0.04), (28, 0.08), (28, 0.12), (40, 0.08)])
def test_blur_turns_an_edge_into_a_gaussian_of_a_share_of_the_height(
    height: int, std: float
) -> None:
    """Three boxes have an excess kurtosis of at least −.4, so that their distribution function is
    .4/24 · max |He3 φ| = .0093 from the normal one (Edgeworth); each of them rounds to 1/2.
    """
    images = np.zeros((1, height, 80, 1), np.uint8)
    images[:, :, 40:] = 255
    expected = ndimage.gaussian_filter1d(images[0, 0, :, 0].astype(float), std * height)
    found = blur(images, std)[0, ..., 0]
    assert np.abs(found - expected).max() < 0.0093 * 255 + 3 / 2


@pytest.mark.parametrize("side", [0.25, 0.55])
@pytest.mark.parametrize("shape", [(28, 28, 1), (20, 30, 3)])
def test_one_square_within_the_image_has_the_colour_of_the_border(
    side: float, shape: tuple[int, int, int]
) -> None:
    """Values 200 within a border of 7: what is hidden is 7, and all squares are of one size."""
    images = np.full((200, *shape), 200, np.uint8)
    images[:, [0, -1]] = images[:, :, [0, -1]] = 7
    hidden = occlude(images, side, SEED)
    edge = round(side * shape[0])
    corners = set()
    for image in hidden:
        rows, columns = np.nonzero((image[1:-1, 1:-1] == 7).all(axis=2))
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert edge - 1 <= np.ptp(rows) + 1 <= edge
        assert edge - 1 <= np.ptp(columns) + 1 <= edge
        corners.add((int(rows.min()), int(columns.min())))
    assert len(corners) > 50
    assert np.isin(hidden, (7, 200)).all()
    assert np.array_equal(hidden, occlude(images, side, SEED))
    assert not np.array_equal(hidden, occlude(images, side, SEED + 1))
