"""One image as it was sent → opened → the network's input, or the reason why it is no image.

Opening takes no more than a header; what it costs to decode is known then.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from models.preprocessing import InputSpec, prepare
from service.errors import Fault, GateError, InvalidError
from service.evidence import Floats
from service.images import Picture, Target, decode, open_image
from service.pixels import read_pixels
from service.png import PlainPng, unpack


@dataclass(frozen=True)
class Pixels:
    """An image that is not encoded: `mode` is "L" or "RGB", `values` its bytes row by row."""

    width: int
    height: int
    mode: str
    values: bytes


class Sent(NamedTuple):
    """One image of a request.

    Attributes:
        content: the bytes of a file, pixels, or an item of the JSON list `images`.
        pointer: where in the request it lies.
    """

    content: bytes | Pixels | object
    pointer: str


class Opened(NamedTuple):
    """An image that was recognised and is not too large: not decoded yet, if it came as a file.

    Attributes:
        image: the image.
        size: its width and height, by its header.
        pointer: where in the request it lies.
    """

    image: Image.Image | PlainPng
    size: tuple[int, int]
    pointer: str

    @property
    def pixels(self) -> int:
        """How many it has."""
        width, height = self.size
        return width * height


class Prepared(NamedTuple):
    """An image that can be inferred: its tensor [1, C, H, W], and the answer's `input`."""

    tensor: Floats
    info: Mapping[str, Any]


def open_sent(sent: Sequence[Sent], max_pixels: int) -> list[Opened | GateError]:
    """Open images; what is wrong with one is returned in its place, not raised.

    Args:
        sent: the images.
        max_pixels: the largest number of pixels of one image.
    """
    return [_opened(image, max_pixels) for image in sent]


def prepare_opened(
    images: Sequence[Opened | GateError],
    spec: InputSpec,
    before_each: Callable[[], None] = lambda: None,
) -> list[Prepared | GateError]:
    """Decode and preprocess images; what is wrong with one is returned in its place, not raised.

    Args:
        images: as `open_sent` gives them.
        spec: the network's input.
        before_each: called before each image, but after the plain PNG files of the input's size,
            which cost little, were unpacked together; what it raises ends the work.
    """
    target = Target(spec.height, spec.width)
    plain = _plain(images, target)
    done: dict[int, Prepared | GateError] = {}
    alike: defaultdict[tuple[int, ...], list[tuple[int, Picture]]] = defaultdict(list)
    for index, image in enumerate(images):
        before_each()
        picture = plain.get(index) or _picture(image, target)
        if isinstance(picture, GateError):
            done[index] = picture
            continue
        shape = picture.pixels.shape
        native = shape[1:3] == (spec.height, spec.width)
        alike[shape if native else (*shape, index)].append((index, picture))
    for group in alike.values():
        pixels = [picture.pixels for _, picture in group]
        tensor, steps = prepare(np.concatenate(pixels) if len(pixels) > 1 else pixels[0], spec)
        for place, ((index, picture), applied) in enumerate(zip(group, steps, strict=True)):
            info = _info(picture.width, picture.height, picture.mode, (*picture.applied, *applied))
            done[index] = Prepared(tensor[place : place + 1], info)
    return [done[index] for index in range(len(images))]


def _opened(sent: Sent, max_pixels: int) -> Opened | GateError:
    try:
        match sent.content:
            case bytes() as file:
                image = open_image(file, max_pixels)
            case Pixels() as pixels:
                image = _from_pixels(pixels)
            case item:
                image = _from_item(item, max_pixels)
        return Opened(image, image.size, sent.pointer)
    except GateError as error:
        return error.at(sent.pointer)


def _plain(images: Sequence[Opened | GateError], target: Target) -> dict[int, Picture]:
    """The plain PNG files of the input's size, unpacked together, by their places.

    Where one is damaged, those of its mode are missing: each by itself they tell which.
    """
    alike: defaultdict[str, dict[int, PlainPng]] = defaultdict(dict)
    for index, image in enumerate(images):
        if isinstance(image, GateError) or not isinstance(image.image, PlainPng):
            continue
        if image.size == (target.width, target.height):
            alike[image.image.mode][index] = image.image
    pictures = {}
    for mode, files in alike.items():
        with suppress(Exception):
            for index, pixels in zip(files, unpack(list(files.values())), strict=True):
                pictures[index] = Picture(pixels[None], target.width, target.height, mode)
    return pictures


def _picture(opened: Opened | GateError, target: Target) -> Picture | GateError:
    if isinstance(opened, GateError):
        return opened
    try:
        return decode(opened.image, opened.size, target)
    except GateError as error:
        return error.at(opened.pointer)


@lru_cache(maxsize=64)
def _info(width: int, height: int, mode: str, applied: tuple[str, ...]) -> Mapping[str, Any]:
    return {"width": width, "height": height, "mode": mode, "applied": list(applied) or ["none"]}


def _from_pixels(pixels: Pixels) -> Image.Image:
    mode, size = pixels.mode, (pixels.width, pixels.height)
    return Image.frombuffer(mode, size, pixels.values, "raw", mode, 0, 1)


def _from_item(item: object, max_pixels: int) -> Image.Image | PlainPng:
    if not isinstance(item, dict):
        raise InvalidError("an image must be an object with base64 or pixels")
    if unknown := sorted(set(item) - {"base64", "pixels", "maximum"}):
        raise _fault(f"/{unknown[0]}", "is not known: use base64, or pixels and maximum")
    if ("base64" in item) == ("pixels" in item):
        raise InvalidError("an image must have either base64 or pixels")
    if "pixels" in item:
        return Image.fromarray(read_pixels(item["pixels"], item.get("maximum"), max_pixels))
    if "maximum" in item:
        raise _fault("/maximum", "goes with pixels only")
    return open_image(_from_base64(item["base64"]), max_pixels)


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
