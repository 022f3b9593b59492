"""The body of an inference request → the options in it, and its images."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import ValidationError

from service.errors import Fault, GateError, InvalidError, MalformedError, TooLargeError
from service.images import check_size
from service.intake import Pixels, Sent
from service.oip.schemas import InferRequest, InputTensor, Parameters
from service.oip.tensors import BYTES, Values, from_bytes, from_list
from service.settings import Settings

INPUT = "/body/inputs/0"
MOST_FAULTS = 8
CHANNELS = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        id: to be repeated in the answer.
        parameters: the options.
        outputs: the name of each that is asked for, and whether as bytes.
        images: files, or `Pixels`.
    """

    id: str | None
    parameters: Parameters
    outputs: Mapping[str, bool]
    images: Sequence[Sent]


def read_question(
    body: bytes, json_size: str | None, offered: Collection[str], settings: Settings
) -> Question:
    """Read the body of a request.

    Args:
        body: JSON, and the bytes of a tensor after it.
        json_size: header Inference-Header-Content-Length; None if all of it is JSON.
        offered: the outputs that there are.
        settings: the limits.

    Raises:
        MalformedError: it is no JSON, or its parts have other sizes than it says.
        InvalidError: a field, the tensor or an output is not what is served.
        TooLargeError: there are too many images, or pixels.
    """
    document, raw = _split(body, json_size)
    try:
        asked = InferRequest.model_validate(orjson.loads(document))
    except ValidationError as error:
        raise _invalid(error) from error
    except ValueError as error:
        raise MalformedError(f"the body is not JSON: {error}") from error
    outputs = _outputs(asked, offered)
    images = _images(asked.inputs[0], raw, settings)
    return Question(asked.id, asked.parameters, outputs, images)


def _split(body: bytes, json_size: str | None) -> tuple[memoryview, memoryview]:
    view = memoryview(body)
    if json_size is None:
        return view, view[len(body) :]
    if not (json_size.isascii() and json_size.isdigit() and len(json_size) < 16):
        raise MalformedError("Inference-Header-Content-Length must be a number of bytes")
    size = int(json_size)
    if size > len(body):
        raise MalformedError(f"the body has {len(body)} bytes, less than the {size} of its JSON")
    return view[:size], view[size:]


def _invalid(error: ValidationError) -> InvalidError:
    faults = []
    for entry in error.errors(include_url=False, include_input=False)[:MOST_FAULTS]:
        where = "".join(f"/{str(part)[:64]}" for part in entry["loc"])
        faults.append(Fault(f"/body{where}", entry["msg"]))
    return InvalidError(f"{faults[0].pointer.lstrip('/')}: {faults[0].message}", *faults)


def _outputs(asked: InferRequest, offered: Collection[str]) -> dict[str, bool]:
    default = asked.parameters.binary_data_output
    if not asked.outputs:
        return dict.fromkeys(offered, default)
    chosen: dict[str, bool] = {}
    for index, output in enumerate(asked.outputs):
        where = f"/body/outputs/{index}/name"
        if output.name not in offered:
            known = ", ".join(offered)
            raise InvalidError(f"there is no output {output.name[:64]!r}: use {known}").at(where)
        if output.name in chosen:
            raise InvalidError(f"output {output.name!r} is asked for twice").at(where)
        binary = output.parameters.binary_data
        chosen[output.name] = default if binary is None else binary
    return chosen


def _images(tensor: InputTensor, raw: memoryview, settings: Settings) -> list[Sent]:
    most = settings.max_images_per_request
    if tensor.shape[0] > most:
        raise TooLargeError(f"more than {most} images in one request", limit=most).at(
            f"{INPUT}/shape/0"
        )
    if tensor.datatype == BYTES:
        return _files(tensor, raw)
    mode = _check_shape(tensor.shape, settings.max_pixels)
    values = _values(tensor, raw)
    assert isinstance(values, np.ndarray)
    height, width = tensor.shape[1:3]
    rows = values.reshape(tensor.shape[0], -1)
    return [
        Sent(Pixels(width, height, mode, _levels(row, index).tobytes()), f"{INPUT}/data/{index}")
        for index, row in enumerate(rows)
    ]


def _check_shape(shape: Sequence[int], max_pixels: int) -> str:
    """The mode of images of this shape."""
    channels = shape[3] if len(shape) == 4 else 1
    if len(shape) < 3 or channels not in CHANNELS:
        raise InvalidError(f"pixels must be [B, h, w] or [B, h, w, 1 or 3], not {shape}").at(
            f"{INPUT}/shape"
        )
    try:
        check_size(shape[2], shape[1], max_pixels)
    except GateError as error:
        raise error.at(f"{INPUT}/shape") from error
    return CHANNELS[channels]


def _levels(row: NDArray[Any], index: int) -> NDArray[np.uint8]:
    """The bytes of an image: as they are, or 255 times numbers from 0 to 1, rounded."""
    if row.dtype == np.uint8:
        return row
    outside = np.flatnonzero(~((row >= 0) & (row <= 1)))
    if len(outside):
        number = f"number {outside[0]} of image {index} is {row[outside[0]]}"
        raise InvalidError(f"{number}, not in 0 to 1").at(f"{INPUT}/data/{index}")
    levels: NDArray[np.uint8] = np.rint(255 * row.astype(np.float64)).astype(np.uint8)
    return levels


def _files(tensor: InputTensor, raw: memoryview) -> list[Sent]:
    if len(tensor.shape) != 1:
        raise InvalidError(f"files must be [B], not {tensor.shape}").at(f"{INPUT}/shape")
    values = _values(tensor, raw)
    assert not isinstance(values, np.ndarray)
    if tensor.parameters.binary_data_size is None:
        values = [_from_base64(each, index) for index, each in enumerate(values)]
    return [Sent(each, f"{INPUT}/data/{index}") for index, each in enumerate(values)]


def _from_base64(text: bytes, index: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidError(f"image {index} is not base64 (RFC 4648): {error}").at(
            f"{INPUT}/data/{index}"
        ) from error


def _values(tensor: InputTensor, raw: memoryview) -> Values:
    size = tensor.parameters.binary_data_size
    if (size or 0) != len(raw):
        raise MalformedError(f"{len(raw)} bytes follow the JSON, not {size or 0}")
    if (size is None) == (tensor.data is None):
        raise InvalidError("an input must have either data or binary_data_size").at(INPUT)
    try:
        if size is None:
            return from_list(tensor.datatype, tensor.shape, tensor.data)
        return from_bytes(tensor.datatype, tensor.shape, raw)
    except GateError as error:
        raise error.at(f"{INPUT}/data") from error
