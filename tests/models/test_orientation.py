from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from models.orientation import CELLS, oriented_gradients

Pixels = NDArray[np.float32]

SIZES = [(1, 1), (2, 9), (4, 6), (8, 8), (14, 21), (28, 28), (29, 50), (100, 65)]
ACROSS, DOWN, RISING, FALLING = range(4)


def random_images(count: int, height: int, width: int) -> Pixels:
    return np.random.default_rng(width).random((count, height, width), dtype=np.float32)


def cells(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """Histograms [4, 7, 7] of one image."""
    return oriented_gradients(image[None].astype(np.float32)).reshape(4, CELLS, CELLS)


def test_upright_edge_by_hand() -> None:
    """The values rise from 0 to 1 between columns 3 and 4, and so the differences at both are 1."""
    image = np.zeros((14, 14))
    image[:, 4:] = 1
    found = cells(image)
    expected = np.zeros((4, CELLS, CELLS))
    expected[ACROSS, :, 1:3] = np.sqrt(2)
    expected[[RISING, FALLING], :, 1:3] = np.sqrt(2 * np.sqrt(0.5))
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("flip", "seen", "unseen"), [(1, RISING, FALLING), (-1, FALLING, RISING)])
def test_slope_is_seen_along_it_and_not_across(flip: int, seen: int, unseen: int) -> None:
    """Inside, ∂x = 0.02 in both directions: 0.04 along the diagonal, over pixels of 2 × 2."""
    image = np.add.outer(np.arange(14), np.arange(14)[::flip]) * 0.02
    inside = cells(image)[:, 1:-1, 1:-1]
    assert inside[unseen] == pytest.approx(0, abs=1e-3)
    assert inside[seen] == pytest.approx(np.sqrt(4 * np.sqrt(2) * 0.04), abs=1e-4)
    assert inside[ACROSS] == pytest.approx(np.sqrt(4 * 0.04), abs=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_cells_of_any_size(size: tuple[int, int]) -> None:
    """An image whose pixels are repeated 7 times has cells of whole pixels, 49 for one."""
    pixels = random_images(1, *size)[0].astype(np.float64)
    down, across = (
        ndimage.correlate1d(pixels, [-1, 0, 1], axis) if pixels.shape[axis] > 2 else 0 * pixels
        for axis in (0, 1)
    )
    down[[0, -1]], across[:, [0, -1]] = 0, 0
    for index, angle in enumerate([0, 90, 45, -45]):
        along = across * np.cos(np.radians(angle)) + down * np.sin(np.radians(angle))
        fine = np.abs(along).repeat(CELLS, axis=0).repeat(CELLS, axis=1)
        sums = fine.reshape(CELLS, size[0], CELLS, size[1]).sum(axis=(1, 3)) / CELLS**2
        assert cells(pixels)[index] == pytest.approx(np.sqrt(sums), abs=1e-5)


def test_transposed_image_has_across_for_down() -> None:
    image = random_images(1, 20, 30)[0]
    found, turned = cells(image), cells(image.T).transpose(0, 2, 1)
    assert turned[[DOWN, ACROSS, RISING, FALLING]] == pytest.approx(found, abs=1e-5)
    mirrored = cells(image[:, ::-1])[:, :, ::-1]
    assert mirrored[[ACROSS, DOWN, FALLING, RISING]] == pytest.approx(found, abs=1e-5)


def test_strokes_that_move_by_a_cell_move_their_edges_by_a_cell() -> None:
    image = np.zeros((28, 28))
    image[9:14, 10:18] = np.random.default_rng(0).random((5, 8))
    moved = np.roll(image, (4, -8), axis=(0, 1))
    assert cells(moved) == pytest.approx(np.roll(cells(image), (1, -2), axis=(1, 2)), abs=1e-6)


def test_brightness() -> None:
    """Edges know nothing of an added level; a quarter of the contrast is half the root."""
    image = random_images(1, 12, 12)[0]
    assert cells(image / 2 + 0.4) == pytest.approx(cells(image) / np.sqrt(2), abs=1e-3)
    assert cells(image / 4) == pytest.approx(cells(image) / 2, abs=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", [0, 1])
def test_flat_image_has_no_edges(size: tuple[int, int], value: float) -> None:
    assert not cells(np.full(size, value)).any()


@pytest.mark.parametrize("size", SIZES)
def test_image_alone_equals_itself_in_any_batch_to_the_bit(size: tuple[int, int]) -> None:
    images = random_images(17, *size)
    together, order = oriented_gradients(images), np.random.default_rng(1).permutation(17)
    assert together.shape == (17, 4 * CELLS**2)
    assert np.array_equal(oriented_gradients(images[order]), together[order])
    for index in range(17):
        assert np.array_equal(oriented_gradients(images[index : index + 1])[0], together[index])
