"""One image as it was sent → the network's input, or the reason why it is no image."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from models.preprocessing import InputSpec, prepare
from service.errors import Fault, GateError, InvalidError
from service.evidence import Floats
from service.images import Picture, Target, decode, from_array, open_image
from service.pixels import read_pixels


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image that can be inferred: its tensor [1, C, H, W], and the answer's `input`."""

    tensor: Floats
    info: dict[str, Any]


@dataclass(frozen=True)
class Sent:
    """One image of a request.

    Attributes:
        content: the bytes of a file, or an item of the JSON list `images`.
        pointer: where in the request it lies.
    """

    content: bytes | object
    pointer: str


def prepare_images(
    sent: Sequence[Sent],
    spec: InputSpec,
    max_pixels: int,
    before_each: Callable[[], None] = lambda: None,
) -> list[Prepared | GateError]:
    """Decode and preprocess images; what is wrong with one is returned in its place, not raised.

    Args:
        sent: the images.
        spec: the network's input.
        max_pixels: the largest number of pixels of one image.
        before_each: called before an image is decoded; what it raises ends the work.
    """
    target = Target(spec.height, spec.width, max_pixels)
    pictures: list[Picture | GateError] = []
    for image in sent:
        before_each()
        pictures.append(_picture(image, target))
    together = _tensors([each for each in pictures if isinstance(each, Picture)], spec)
    return [
        picture if isinstance(picture, GateError) else _prepared(picture, *next(together))
        for picture in pictures
    ]


def _picture(sent: Sent, target: Target) -> Picture | GateError:
    try:
        if isinstance(sent.content, bytes):
            return decode(open_image(sent.content, target.max_pixels), target)
        return _from_item(sent.content, target)
    except GateError as error:
        return error.at(sent.pointer)


def _tensors(
    pictures: Sequence[Picture], spec: InputSpec
) -> Iterator[tuple[Floats, tuple[str, ...]]]:
    """Tensor [1, C, H, W] and steps of every picture; neighbours of the network's size at once."""
    native = (1, spec.height, spec.width)
    for shape, group in groupby(pictures, key=lambda picture: picture.pixels.shape):
        members = list(group)
        size = len(members) if shape[:3] == native else 1
        for first in range(0, len(members), size):
            batch = [picture.pixels for picture in members[first : first + size]]
            tensor, steps = prepare(batch[0] if size == 1 else np.concatenate(batch), spec)
            for index, applied in enumerate(steps):
                yield tensor[index : index + 1], applied


def _prepared(picture: Picture, tensor: Floats, steps: tuple[str, ...]) -> Prepared:
    info = {
        "width": picture.width,
        "height": picture.height,
        "mode": picture.mode,
        "applied": [*picture.applied, *steps] or ["none"],
    }
    return Prepared(tensor, info)


def _from_item(item: object, target: Target) -> Picture:
    if not isinstance(item, dict):
        raise InvalidError("an image must be an object with base64 or pixels")
    if unknown := sorted(set(item) - {"base64", "pixels", "maximum"}):
        raise _fault(f"/{unknown[0]}", "is not known: use base64, or pixels and maximum")
    if ("base64" in item) == ("pixels" in item):
        raise InvalidError("an image must have either base64 or pixels")
    if "pixels" in item:
        rows = read_pixels(item["pixels"], item.get("maximum"), target.max_pixels)
        return from_array(rows, target)
    if "maximum" in item:
        raise _fault("/maximum", "goes with pixels only")
    return decode(open_image(_from_base64(item["base64"]), target.max_pixels), target)


def _from_base64(text: object) -> bytes:
    if not isinstance(text, str):
        raise _fault("/base64", "must be a string")
    if text.startswith("data:"):
        raise _fault("/base64", "must be the base64 alone, without the data: prefix")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error is one, and so are letters outside ASCII
        raise _fault("/base64", f"is not base64 (RFC 4648): {error}") from error


def _fault(pointer: str, message: str) -> InvalidError:
    return InvalidError(f"{pointer.removeprefix('/')} {message}", Fault(pointer, message))
