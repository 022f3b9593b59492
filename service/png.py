"""The plainest PNG files: signature, header, one chunk of pixels, end; and nothing else.

Pillow's way through a file's chunks, and from its own images to bytes, takes four times as long as
the pixels of a small image. Where there is nothing to find on that way it is not gone; but the
pixels are unpacked by Pillow's codec here too, which is why Pillow is bound to versions whose codec
is called so. Whatever is not exactly so is left to Pillow.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import _imaging

_BEGIN = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"
_MODES = {b"\x08\0\0\0\0": "L", b"\x08\x02\0\0\0": "RGB"}  # 8 bits, not interlaced
_END = b"\0\0\0\0IEND\xaeB`\x82"
_HEAD = struct.Struct(">16s II 5s I I 4s")
_AROUND = _HEAD.size + 4 + len(_END)  # all but the pixels, their check sum included


class PlainPng(NamedTuple):
    """A file whose pixels have not been unpacked.

    Attributes:
        width: pixels a row.
        height: rows.
        mode: "L" or "RGB".
        file: its bytes.
    """

    width: int
    height: int
    mode: str
    file: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height


def unpack(files: Sequence[PlainPng]) -> NDArray[np.uint8]:
    """The pixels of n ≥ 1 files of one size and mode, [n, h, w, c].

    They are unpacked into one image, one below the other: what is done once for all is half of what
    a small image costs.

    Raises:
        ValueError: those of a file are damaged or cut short.
    """
    (width, height), mode = files[0].size, files[0].mode
    rows = height * len(files)
    image = _imaging.new(mode, (width, rows))
    for number, each in enumerate(files):
        decoder = _imaging.zip_decoder(mode, mode, 0)
        decoder.setimage(image, (0, height * number, width, height * (number + 1)))
        more, error = decoder.decode(each.file[_HEAD.size : _HEAD.size - _AROUND])
        if more >= 0 or error:
            raise ValueError("its pixels end early" if more >= 0 else "its pixels are damaged")
    encoder = _imaging.raw_encoder(mode, mode)
    encoder.setimage(image, (0, 0, width, rows))
    _, _, values = encoder.encode(width * rows * len(mode))
    return np.frombuffer(values, np.uint8).reshape(len(files), height, width, len(mode))


def read_plain(file: bytes) -> PlainPng | None:
    """The header of a plain PNG file; None of any other, or if that is damaged."""
    if len(file) <= _AROUND:
        return None
    begin, width, height, kind, check, length, name = _HEAD.unpack_from(file)
    mode = _MODES.get(kind)
    if (
        mode is None
        or begin != _BEGIN
        or name != b"IDAT"
        or length != len(file) - _AROUND
        or not file.endswith(_END)
        or zlib.crc32(file[12:29]) != check
        or not (width and height)
    ):
        return None
    return PlainPng(width, height, mode, file)
