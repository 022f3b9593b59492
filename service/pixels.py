"""Pixels sent as numbers: nested lists → uint8, or an error that names the number at fault."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import Fault, InvalidError
from service.images import check_size

BYTE = 255


def read_pixels(rows: object, maximum: object, max_pixels: int) -> NDArray[np.uint8]:
    """Read grey `[[...], ...]` or RGB `[[[r, g, b], ...], ...]`.

    Args:
        rows: the nested lists.
        maximum: the number that means full brightness; None stands for integers 0 to 255.
        max_pixels: the largest number of pixels.

    Returns:
        uint8 [h, w] or [h, w, 3].

    Raises:
        InvalidError: not such lists, or a number is of the wrong type or out of range.
        TooLargeError: there are more than `max_pixels` pixels.
    """
    types: set[type] = {int} if maximum is None else {int, float}
    full = BYTE if maximum is None else _positive(maximum)
    if not isinstance(rows, list) or not rows:
        raise _fault("/pixels", "must be a list of rows, and not empty")
    if not isinstance(rows[0], list) or not rows[0]:
        raise _fault("/pixels/0", "must be a list of pixels, and not empty")
    check_size(len(rows[0]), len(rows), max_pixels)
    colour = isinstance(rows[0][0], list)
    for index, row in enumerate(rows):
        _check_row(f"/pixels/{index}", row, len(rows[0]), colour, types)
    try:
        values = np.array(rows, dtype=np.int64 if maximum is None else np.float64)
    except OverflowError:
        values = np.array(rows, dtype=object)
    outside = np.asarray(~((values >= 0) & (values <= full)), dtype=bool)
    if outside.any():
        at = tuple(int(axis[0]) for axis in np.nonzero(outside))
        number = _shown(values[at])
        raise _fault("/pixels/" + "/".join(map(str, at)), f"is {number}, not in 0 to {full:g}")
    if maximum is None:
        return values.astype(np.uint8)
    scaled: NDArray[np.uint8] = np.rint(values / full * BYTE).astype(np.uint8)
    return scaled


def _positive(maximum: object) -> float:
    if type(maximum) in (int, float):
        try:
            value = float(maximum)  # type: ignore[arg-type]
        except OverflowError:
            value = math.inf
        if math.isfinite(value) and value > 0:
            return value
    raise _fault("/maximum", "must be a positive number")


def _check_row(where: str, row: object, width: int, colour: bool, types: set[type]) -> None:
    if not isinstance(row, list):
        raise _fault(where, "must be a list of pixels")
    if len(row) != width:
        raise _fault(where, f"has {len(row)} pixels, but the first row has {width}")
    if not colour:
        _check_numbers(where, row, types)
        return
    for index, pixel in enumerate(row):
        if not isinstance(pixel, list):
            raise _fault(f"{where}/{index}", "must be [r, g, b], as the first pixel is a list")
        if len(pixel) != 3:
            raise _fault(f"{where}/{index}", f"has {len(pixel)} channels; 1 number or 3 are needed")
        _check_numbers(f"{where}/{index}", pixel, types)


def _check_numbers(where: str, numbers: list[Any], types: set[type]) -> None:
    if set(map(type, numbers)) <= types:
        return
    index = next(i for i, number in enumerate(numbers) if type(number) not in types)
    wanted = "a number" if float in types else 'an integer (with "maximum", a real number)'
    raise _fault(f"{where}/{index}", f"is {_shown(numbers[index])}, not {wanted}")


def _shown(value: Any) -> str:
    """A JSON value, in a few characters."""
    if type(value) is int and abs(value) >= 10**20:
        return "an enormous integer"
    names = {bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), str(value))


def _fault(pointer: str, message: str) -> InvalidError:
    return InvalidError(f"{pointer.removeprefix('/')} {message}", Fault(pointer, message))
