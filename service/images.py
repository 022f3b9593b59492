"""Untrusted bytes → pixels.

    bytes → recognised by content → header checked against the limits → decoded → upright pixels

Nothing is decoded before the header's size has passed. What a file claims to be, by its name or
media type, is not looked at. A large image is reduced by whole factors while it is decoded, to no
less than `OVERSAMPLING` times the network's input, so that a photograph costs neither the time nor
the memory of its full size in `models.preprocessing`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from service.errors import GateError, InvalidError, TooLargeError, UnsupportedMediaError
from service.png import PlainPng, read_plain, unpack

# Naming the plugins registers them; Pillow would import all that it has on the first bad file.
FORMATS = tuple(
    plugin.format
    for plugin in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        WebPImagePlugin.WebPImageFile,
        BmpImagePlugin.BmpImageFile,
    )
)
ACCEPTED = "PNG, JPEG, WebP or BMP"
OVERSAMPLING = 8

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SIDEWAYS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}

# The limit is ours to check, from the header and per image; Pillow's is one for the whole process.
Image.MAX_IMAGE_PIXELS = None

_OTHERS = (
    ("GIF", b"GIF8"),
    ("TIFF", b"II*\0"),
    ("TIFF", b"MM\0*"),
    ("PDF", b"%PDF"),
    ("SVG", b"<svg"),
    ("JPEG 2000", b"\0\0\0\x0cjP"),
    ("JPEG XL", b"\xff\x0a"),
    ("ICO", b"\0\0\1\0"),
)


@dataclass(frozen=True)
class Target:
    """What images are decoded for: the size of the network's input."""

    height: int
    width: int


class Picture(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: uint8 [1, h, w, c], c = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).
        width: pixels a row as sent, upright.
        height: rows as sent, upright.
        mode: how it was stored, in Pillow's words ("L", "RGB", "P", "I;16", ...).
        applied: what was done to it while decoding.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    mode: str
    applied: tuple[str, ...] = ()


def looks_like_image(data: bytes) -> bool:
    """Whether the bytes begin as one of the accepted formats does."""
    return data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")) or (
        data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    )


def open_image(data: bytes, max_pixels: int) -> Image.Image | PlainPng:
    """Recognise an image and check its header; no pixel is decoded.

    Raises:
        InvalidError: it is empty, damaged, animated or no image at all.
        UnsupportedMediaError: it is an image of another format.
        TooLargeError: it has more than `max_pixels` pixels.
    """
    if not data:
        raise InvalidError("the image is empty: 0 bytes")
    if plain := read_plain(data):
        check_size(plain.width, plain.height, max_pixels)
        return plain
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder raises, the bytes are to blame
        raise _not_opened(data) from error
    check_size(image.width, image.height, max_pixels)
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise InvalidError("the image is animated: send one frame")
    if image.mode not in _TO_BYTES:
        raise InvalidError(f"the image's colours are {image.mode}: convert it to grey or RGB")
    return image


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image without pixels, or with too many.

    Raises:
        InvalidError: a side is zero.
        TooLargeError: there are more than `max_pixels` pixels.
    """
    if width < 1 or height < 1:
        raise InvalidError(f"the image has no pixels: it is {width} x {height}")
    if width * height > max_pixels:
        raise TooLargeError(
            f"the image has {width} x {height} pixels; the limit is {max_pixels} in all",
            limit=max_pixels,
        )


def decode(image: Image.Image | PlainPng, size: tuple[int, int], target: Target) -> Picture:
    """Decode an opened image, or one made of pixels; upright and reduced.

    Args:
        image: the image; what is decoded a second time gives the same.
        size: its width and height when it was opened: those of a JPEG change when it is decoded.
        target: what it is decoded for.

    Raises:
        InvalidError: its data are damaged or cut short.
    """
    mode, (width, height) = image.mode, size
    drafted, turn = False, None
    try:
        if isinstance(image, PlainPng):
            unpacked = unpack([image])
            if _factor(width, height, target) < 2:
                return Picture(unpacked, width, height, mode)
            plain = Image.frombytes(mode, size, unpacked.tobytes())
        else:
            drafted = _load(image, size, target)
            turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1)) if image.info else None
            plain = _TO_BYTES[mode](image)
        if turn is not None:
            plain = plain.transpose(turn)
        reduced, pixels = _reduce(plain, target)
    except MemoryError:
        raise
    except Exception as error:  # as above
        reason = str(error) or type(error).__name__
        raise InvalidError(f"the image is damaged or cut short ({reason})") from error
    if turn is not None and turn in _SIDEWAYS:
        width, height = height, width
    applied = ("orient",) * (turn is not None) + ("reduce",) * (drafted or reduced)
    return Picture(pixels, width, height, mode, applied)


def _load(image: Image.Image, size: tuple[int, int], target: Target) -> bool:
    """Decode; whether to a smaller size, as a JPEG's decoder can."""
    if image.format in ("JPEG", "MPO"):
        side = OVERSAMPLING * max(target.height, target.width)
        image.draft(None, (side, side))
    drafted = image.size != size
    image.load()
    return drafted


def _reduce(image: Image.Image, target: Target) -> tuple[bool, NDArray[np.uint8]]:
    factor = _factor(image.width, image.height, target)
    if factor > 1:
        image = image.reduce(factor)
    array = np.frombuffer(image.tobytes(), dtype=np.uint8)
    return factor > 1, array.reshape(1, image.height, image.width, -1)


def _factor(width: int, height: int, target: Target) -> int:
    """By which an image is reduced, if it is more than one."""
    return int(max(height / target.height, width / target.width) / OVERSAMPLING)


def _not_opened(data: bytes) -> GateError:
    for name, signature in _OTHERS:
        if data.startswith(signature):
            return UnsupportedMediaError(f"{name} is not accepted: send {ACCEPTED}")
    if data[4:8] == b"ftyp":
        return UnsupportedMediaError(f"HEIF and AVIF are not accepted: send {ACCEPTED}")
    if b"<svg" in data[:1024]:
        return UnsupportedMediaError(f"SVG is not accepted: send {ACCEPTED}")
    if looks_like_image(data):
        return InvalidError("the image is damaged or cut short")
    return InvalidError(f"these bytes are no image: send {ACCEPTED}")


def _colours(opaque: str, transparent: str) -> Callable[[Image.Image], Image.Image]:
    def convert(image: Image.Image) -> Image.Image:
        mode = transparent if "transparency" in image.info else opaque
        return image if image.mode == mode else image.convert(mode)

    return convert


def _sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


_TO_BYTES = {
    "1": _colours("L", "LA"),
    "L": _colours("L", "LA"),
    "LA": _colours("LA", "LA"),
    "P": _colours("RGB", "RGBA"),
    "PA": _colours("RGBA", "RGBA"),
    "RGB": _colours("RGB", "RGBA"),
    "RGBA": _colours("RGBA", "RGBA"),
    "I;16": _sixteen_bits,
    "I;16B": _sixteen_bits,
}
