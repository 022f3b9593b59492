from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import GateError, InvalidError, TooLargeError
from service.pixels import read_pixels

LIMIT = 10_000


def test_grey_and_colour():
    assert read_pixels([[0, 1], [2, 255]], None, LIMIT).tolist() == [[0, 1], [2, 255]]
    colour = read_pixels([[[1, 2, 3]], [[4, 5, 6]]], None, LIMIT)
    assert colour.shape == (2, 1, 3)
    assert colour.dtype == np.uint8


def test_maximum_scales():
    assert read_pixels([[0, 0.5, 1]], 1, LIMIT).tolist() == [[0, 128, 255]]
    assert read_pixels([[0, 65535]], 65535, LIMIT).tolist() == [[0, 255]]
    assert read_pixels([[0.0, 128.4]], 255, LIMIT).tolist() == [[0, 128]]
    every = list(range(256))
    assert read_pixels([[value / 255 for value in every]], 1, LIMIT).tolist() == [every]


@pytest.mark.parametrize(
    ("rows", "maximum", "pointer"),
    [
        (None, None, "/pixels"),
        ([], None, "/pixels"),
        ("text", None, "/pixels"),
        ({"0": [1]}, None, "/pixels"),
        ([1, 2], None, "/pixels/0"),
        ([[]], None, "/pixels/0"),
        ([[1], 2], None, "/pixels/1"),
        ([[1, 2], [3]], None, "/pixels/1"),
        ([[1, 2], [3, [4, 4, 4]]], None, "/pixels/1/1"),
        ([[1, "2"]], None, "/pixels/0/1"),
        ([[1, True]], None, "/pixels/0/1"),
        ([[True]], 1, "/pixels/0/0"),
        ([[1, None]], None, "/pixels/0/1"),
        ([[1, 2.0]], None, "/pixels/0/1"),
        ([[0], [-1]], None, "/pixels/1/0"),
        ([[0, 256]], None, "/pixels/0/1"),
        ([[0, 10**400]], None, "/pixels/0/1"),
        ([[0, 10**400]], 1, "/pixels/0/1"),
        ([[0, -(10**20)]], None, "/pixels/0/1"),
        ([[0, 1.01]], 1, "/pixels/0/1"),
        ([[0, -0.01]], 1, "/pixels/0/1"),
        ([[0, float("nan")]], 1, "/pixels/0/1"),
        ([[0, float("inf")]], 1, "/pixels/0/1"),
        ([[[1, 2, 3], [1, 2]]], None, "/pixels/0/1"),
        ([[[1, 2, 3, 4]]], None, "/pixels/0/0"),
        ([[[1]]], None, "/pixels/0/0"),
        ([[[1, 2, 3], 4]], None, "/pixels/0/1"),
        ([[[1, 2, 3], [1, 2, 300]]], None, "/pixels/0/1/2"),
        ([[[1, 2, [3]]]], None, "/pixels/0/0/2"),
        ([[0]], 0, "/maximum"),
        ([[0]], -1, "/maximum"),
        ([[0]], True, "/maximum"),
        ([[0]], "1", "/maximum"),
        ([[0]], float("nan"), "/maximum"),
        ([[0]], float("inf"), "/maximum"),
        ([[0]], 10**400, "/maximum"),
    ],
)
def test_what_is_wrong_is_named(rows, maximum, pointer):
    with pytest.raises(InvalidError) as error:
        read_pixels(rows, maximum, LIMIT)
    assert [fault.pointer for fault in error.value.faults] == [pointer]
    assert len(error.value.detail) < 200


def test_too_many_pixels():
    with pytest.raises(TooLargeError) as error:
        read_pixels([[0] * 101] * 100, None, LIMIT)
    assert error.value.limit == LIMIT


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=20,
)


@given(rows=JSON, maximum=JSON)
def test_any_json_is_read_or_refused(rows, maximum):
    try:
        pixels = read_pixels(rows, maximum, LIMIT)
    except GateError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim in (2, 3)
