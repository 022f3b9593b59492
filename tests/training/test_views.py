from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from training.views import FRAME, frame, rotate

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
