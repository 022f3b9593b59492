"""Tensors of the Open Inference Protocol v2, as bytes and as JSON.

As bytes they are row-major and little-endian, and every element of BYTES follows its length, an
unsigned integer of 4 bytes. In JSON the elements are a flat list, or nested as the shape is, and an
element of BYTES is a string. (KServe, Open Inference Protocol, REST; Triton, binary tensor data.)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidError

BYTES = "BYTES"
DATATYPES = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "INT32": np.dtype("<i4"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_IN_JSON: dict[str, set[type]] = {
    "b": {bool},
    "u": {int},
    "i": {int},
    "f": {int, float},
}
_LENGTH = struct.Struct("<I")

Values = NDArray[Any] | Sequence[bytes]


@dataclass(frozen=True, eq=False)
class Tensor:
    """A named array.

    Attributes:
        name: of the input or output.
        datatype: a key of `DATATYPES`, or `BYTES`.
        shape: the lengths of its axes.
        values: its elements, row by row: a flat array, or a list if they are bytes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Values


def to_bytes(tensor: Tensor) -> bytes:
    """The elements as bytes."""
    if isinstance(tensor.values, np.ndarray):
        return tensor.values.astype(DATATYPES[tensor.datatype], copy=False).tobytes()
    return b"".join(_LENGTH.pack(len(each)) + each for each in tensor.values)


def from_bytes(datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> Values:
    """The elements of a tensor of this type and shape.

    Raises:
        InvalidError: the bytes are too few or too many for it.
    """
    count = math.prod(shape)
    if datatype == BYTES:
        return _elements(memoryview(raw), count)
    dtype = DATATYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        raise InvalidError(
            f"{datatype} {list(shape)} takes {count * dtype.itemsize} bytes, not {len(raw)}"
        )
    return np.frombuffer(raw, dtype)


def to_list(tensor: Tensor) -> list[Any]:
    """The elements for JSON, in one flat list.

    Raises:
        UnicodeDecodeError: an element of BYTES is no text in UTF-8.
    """
    if isinstance(tensor.values, np.ndarray):
        elements: list[Any] = tensor.values.tolist()
        return elements
    return [each.decode() for each in tensor.values]


def from_list(datatype: str, shape: Sequence[int], data: object) -> Values:
    """The elements of a tensor of this type and shape.

    Raises:
        InvalidError: it is no list of such elements, or there are too few or too many.
    """
    elements = _flat(data, shape)
    dtype = DATATYPES.get(datatype)
    allowed = {str} if dtype is None else _IN_JSON[dtype.kind]
    if not set(map(type, elements)) <= allowed:
        index = next(i for i, each in enumerate(elements) if type(each) not in allowed)
        raise InvalidError(f"element {index} is {_KINDS[type(elements[index])]}, not {datatype}")
    if dtype is None:
        return [each.encode() for each in elements]
    try:
        with np.errstate(over="ignore"):  # a number that FP32 cannot hold becomes infinite
            return np.array(elements, dtype)
    except OverflowError as error:
        raise InvalidError(f"a number is out of the range of {datatype}") from error


_KINDS = {
    bool: "a boolean",
    int: "an integer",
    float: "a real number",
    str: "a string",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def _elements(raw: memoryview, count: int) -> list[bytes]:
    elements: list[bytes] = []
    begin = 0
    while begin < len(raw) and len(elements) < count:
        first = begin + _LENGTH.size
        if first > len(raw):
            break
        (length,) = _LENGTH.unpack_from(raw, begin)
        begin = first + length
        elements.append(bytes(raw[first:begin]))
    if begin != len(raw) or len(elements) != count:
        raise InvalidError(f"{len(raw)} bytes are not {count} elements, each after its length")
    return elements


def _flat(data: object, shape: Sequence[int]) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidError("must be a list")
    elements, nested = data, [len(data)]
    while len(nested) <= len(shape) and set(map(type, elements)) == {list}:
        lengths = set(map(len, elements))
        if len(lengths) > 1:
            raise InvalidError("is ragged: lists of one level differ in length")
        nested.append(lengths.pop())
        elements = list(chain.from_iterable(elements))
    if len(elements) != math.prod(shape) or (len(nested) > 1 and nested != list(shape)):
        raise InvalidError(f"has shape {nested}, not {list(shape)}")
    return elements
