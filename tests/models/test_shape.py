from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from models.shape import LEVELS, STATISTICS, UNITS, shape_statistics

Pixels = NDArray[np.float32]

SIZES = [(1, 1), (1, 6), (2, 2), (4, 6), (8, 8), (13, 30), (28, 28), (96, 65)]


def random_images(count: int, height: int, width: int) -> Pixels:
    """Whole units of many magnitudes, with a good share of black and of white."""
    values = np.random.default_rng(height).normal(0, 1, (count, height, width))
    grey = np.where(values < -1, np.exp(4 * values), values).clip(0, 1)
    return (np.rint(UNITS * grey) / UNITS).astype(np.float32)


def statistics(image: NDArray[np.floating]) -> dict[str, float]:
    (values,) = shape_statistics(image[None].astype(np.float32))
    return dict(zip(STATISTICS, values.tolist(), strict=True))


def differing(one: dict[str, float], other: dict[str, float], but: float = 1e-5) -> set[str]:
    return {name for name in STATISTICS if one[name] != pytest.approx(other[name], abs=but)}


def test_statistics_of_a_block_by_hand() -> None:
    image = np.zeros((4, 6))
    image[1:3, 2:5] = 1
    expected = dict.fromkeys(STATISTICS, 0.0) | {
        "mass": 6 / 24,
        "row": 1.5 / 4,
        "column": 3 / 6,
        "row_variance": 0.25 / 4**2,
        "column_variance": (2 / 3) / 6**2,
        "row_edges": 6 / 6,
        "column_edges": 4 / 6,
        "curvature": 12 / 6,
        "perimeter": 10 / 6,
        "height": 2 / 4,
        "width": 3 / 6,
        "above_0.95": 6 / 24,
    }
    assert statistics(image) == pytest.approx(expected, abs=1e-7)


def test_erosion_of_a_diamond_by_hand() -> None:
    rows, columns = np.indices((9, 9)) - 4
    found = statistics(np.abs(rows) + np.abs(columns) <= 2)
    assert found["eroded"] == pytest.approx(5 / 13)
    assert found["eroded_twice"] == pytest.approx(1 / 13)
    assert found["perimeter"] == pytest.approx(20 / 13)


def test_values_are_rounded_to_units_and_those_of_8_bits_are_whole() -> None:
    image = random_images(1, 28, 28)[0]
    noise = np.random.default_rng(2).uniform(-0.49, 0.49, image.shape) / UNITS
    assert statistics((image + noise).clip(0, 1)) == statistics(image)
    assert statistics(image.clip(0, 1 - 1 / UNITS) + 0.51 / UNITS) != statistics(image)
    bits = np.arange(256, dtype=np.float32) / np.float32(255)
    assert np.array_equal(np.rint(bits * np.float32(UNITS)), 16 * np.arange(256))


def test_levels_by_hand() -> None:
    image = np.array([[0.01, 0.03, 0.24], [0.26, 0.51, 0.74], [0.76, 0.94, 0.96]])
    found = statistics(image)
    shares = {name: found[name] * 9 for name in STATISTICS if name.startswith("above")}
    expected = {"above_0.02": 2, "above_0.25": 1, "above_0.5": 2, "above_0.75": 2, "above_0.95": 1}
    assert shares == pytest.approx(expected)


@pytest.mark.parametrize(("row", "column", "margin"), [(1, 9, 1), (9, 2, 1), (2, 3, 0)])
def test_margin_is_a_seventh_of_each_side(row: int, column: int, margin: float) -> None:
    for flip in (slice(None), slice(None, None, -1)):
        image = np.zeros((14, 21))
        image[flip][row, column] = 0.7
        assert statistics(image)["margin"] == pytest.approx(margin)


@pytest.mark.parametrize("size", [(4, 6), (8, 8), (13, 30), (28, 28), (64, 65)])
def test_statistics_equal_those_of_scipy(size: tuple[int, int]) -> None:
    cross = ndimage.generate_binary_structure(2, 1)
    for pixels in random_images(5, *size):
        image, found = pixels.astype(np.float64), statistics(pixels)
        places = np.indices(size).reshape(2, -1) / np.reshape(size, (2, 1))
        second = np.cov(places, aweights=image.ravel(), ddof=0)
        down, across = (ndimage.correlate1d(image, [-1, 1], axis, origin=-1) for axis in (0, 1))
        ink = image > 0.5
        eroded = [ndimage.binary_erosion(ink, cross, iterations=times) for times in (1, 2)]
        top, left = (round(side / 7) for side in size)
        expected = {
            "mass": image.mean(),
            "row": ndimage.center_of_mass(image)[0] / size[0],
            "column": ndimage.center_of_mass(image)[1] / size[1],
            "row_variance": second[0, 0],
            "column_variance": second[1, 1],
            "covariance": second[0, 1],
            "row_edges": np.abs(down[:-1]).sum() / image.sum(),
            "column_edges": np.abs(across[:, :-1]).sum() / image.sum(),
            "curvature": np.abs(ndimage.laplace(image)[1:-1, 1:-1]).sum() / image.sum(),
            "margin": 1 - image[top : size[0] - top, left : size[1] - left].sum() / image.sum(),
            "perimeter": sum(np.logical_xor(*pair).sum() for pair in beside(ink)) / ink.sum(),
            "eroded": eroded[0].sum() / ink.sum(),
            "eroded_twice": eroded[1].sum() / ink.sum(),
            "height": np.mean([(row > 0.3).any() for row in image]),
            "width": np.mean([(column > 0.3).any() for column in image.T]),
        }
        levels = np.histogram(image, [*np.nextafter(np.float32(LEVELS), np.float32(1)), 2])[0]
        expected |= {f"above_{at:g}": n / image.size for at, n in zip(LEVELS, levels, strict=True)}
        assert found == pytest.approx(expected, abs=1e-6)


def beside(region: NDArray[np.bool_]) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    return [(region[1:], region[:-1]), (region[:, 1:], region[:, :-1])]


def framed(size: int, top: int, left: int) -> NDArray[np.float64]:
    """The same 6 × 5 strokes at a place in a blank square."""
    image = np.zeros((size, size))
    quarters = np.random.default_rng(4).integers(0, UNITS // 4, (6, 5))
    image[top : top + 6, left : left + 5] = 4 * quarters / UNITS
    return image


def test_place_changes_only_what_tells_the_place() -> None:
    here, there = statistics(framed(28, 12, 10)), statistics(framed(28, 5, 17))
    assert differing(here, there) == {"row", "column"}
    assert there["row"] - here["row"] == pytest.approx(-7 / 28)
    assert there["column"] - here["column"] == pytest.approx(7 / 28)


def test_larger_frame_changes_only_what_is_a_share_of_it() -> None:
    small, large = statistics(framed(14, 4, 4)), statistics(framed(28, 11, 11))
    unchanged = {"row_edges", "column_edges", "curvature", "perimeter", "eroded", "eroded_twice"}
    assert not differing(small, large) & (unchanged | {"margin"})
    assert large["mass"] == pytest.approx(small["mass"] / 4)
    assert large["width"] == pytest.approx(small["width"] / 2)
    assert large["row_variance"] == pytest.approx(small["row_variance"] / 4, abs=1e-6)


def test_brightness_changes_only_mass_and_what_has_a_threshold() -> None:
    bright, dark = statistics(framed(20, 5, 7)), statistics(framed(20, 5, 7) / 4)
    thresholds = {name for name in STATISTICS if name.startswith("above")}
    thresholds |= {"perimeter", "eroded", "eroded_twice", "height", "width"}
    assert differing(bright, dark) - thresholds == {"mass"}
    assert dark["mass"] == pytest.approx(bright["mass"] / 4)


def test_transposed_image_has_rows_for_columns() -> None:
    image = random_images(1, 9, 12)[0]
    there, back = statistics(image), statistics(image.T)
    pairs = {"row": "column", "height": "width"}
    pairs |= {f"row_{name}": f"column_{name}" for name in ("variance", "edges")}
    swapped = {**pairs, **{other: name for name, other in pairs.items()}}
    assert differing(there, back) >= {"row", "column"}
    assert not differing(there, {name: back[swapped.get(name, name)] for name in STATISTICS})


@pytest.mark.parametrize("size", SIZES)
def test_blank_and_full_images(size: tuple[int, int]) -> None:
    blank, full = statistics(np.zeros(size)), statistics(np.ones(size))
    assert blank == dict.fromkeys(STATISTICS, 0.0) | {"margin": 1.0}
    one = {"mass", "height", "width", "above_0.95"}
    assert {name: full[name] for name in one} == dict.fromkeys(one, 1.0)
    assert full["row"] == pytest.approx((size[0] - 1) / 2 / size[0], abs=1e-7)
    assert full["row_variance"] == pytest.approx((1 - size[0] ** -2) / 12, abs=1e-6)
    assert np.isfinite(list(full.values())).all()


@pytest.mark.parametrize("size", SIZES)
def test_image_alone_equals_itself_in_any_batch_to_the_bit(size: tuple[int, int]) -> None:
    images = random_images(17, *size)
    together, order = shape_statistics(images), np.random.default_rng(1).permutation(17)
    assert together.shape == (17, len(STATISTICS))
    assert np.array_equal(shape_statistics(images[order]), together[order])
    for index in range(17):
        assert np.array_equal(shape_statistics(images[index : index + 1])[0], together[index])
