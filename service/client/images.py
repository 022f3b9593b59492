"""An image as the caller has it → the bytes of an image file."""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from typing_extensions import Buffer

ImageLike: TypeAlias = "bytes | str | os.PathLike[str] | Buffer"
"""The bytes of an image file, its path, or pixels: uint8 [H, W] or [H, W, 1 | 2 | 3 | 4] with the
buffer protocol, such as a numpy array: grey, grey and alpha, RGB, RGBA."""

# What the service takes in one request by default: 256 images, 32 MiB with the form around them.
MAX_IMAGES = 256
MAX_BYTES = 31 * 2**20

# PNG, third edition, table 8: colour type by number of channels.
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def image_bytes(image: ImageLike) -> bytes:
    """The bytes of an image file; pixels become a PNG, which loses nothing.

    Raises:
        OSError: the file cannot be read.
        TypeError: it is none of the kinds of image.
        ValueError: the pixels are not uint8, or of a shape that is no image.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    pixels = memoryview(image)
    if pixels.ndim == 1 and pixels.format == "B":
        return pixels.tobytes()
    return _png(pixels)


async def load(image: ImageLike) -> bytes:
    """`image_bytes`, without holding up the event loop."""
    return image if isinstance(image, bytes) else await asyncio.to_thread(image_bytes, image)


def batches(images: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Consecutive runs of images, each as many as fit in one request."""
    first = size = 0
    for index, image in enumerate(images):
        if index > first and (index - first == MAX_IMAGES or size + len(image) > MAX_BYTES):
            yield images[first:index]
            first, size = index, 0
        size += len(image)
    if images:
        yield images[first:]


def _png(pixels: memoryview) -> bytes:
    """Pixels as a PNG, every row without a filter."""
    height, width, channels = (*(pixels.shape or ()), 1, 1, 1)[:3]
    shaped = pixels.ndim in (2, 3) and channels in _COLOUR_TYPES and height * width > 0
    if pixels.format != "B" or not shaped:
        raise ValueError(
            f"pixels must be uint8 [H, W] or [H, W, 1 to 4], not {pixels.format!r} {pixels.shape}"
        )
    content, stride = pixels.tobytes(), width * channels
    rows = (b"\0" + content[at : at + stride] for at in range(0, len(content), stride))
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
