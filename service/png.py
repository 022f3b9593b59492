"""The plainest PNG files: signature, header, one chunk of pixels, end; and nothing else.

Pillow's way through a file's chunks takes three times as long as the pixels of a small image.
Where there is nothing to find on that way it is not gone; the pixels themselves are still
unpacked by Pillow's codec. Whatever is not exactly so is left to Pillow.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from PIL import Image

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

    def unpack(self) -> Image.Image:
        """The pixels.

        Raises:
            ValueError: they are damaged or cut short.
        """
        packed = self.file[_HEAD.size : _HEAD.size - _AROUND]
        return Image.frombytes(self.mode, self.size, packed, "zip", self.mode, 0)


def read_plain(file: bytes) -> PlainPng | None:
    """The header of a plain PNG file; None of any other, or if that is damaged."""
    if len(file) <= _AROUND:
        return None
    begin, width, height, kind, check, length, name = _HEAD.unpack_from(file)
    mode = _MODES.get(kind)
    plain = (
        mode
        and begin == _BEGIN
        and name == b"IDAT"
        and length == len(file) - _AROUND
        and file.endswith(_END)
        and zlib.crc32(file[12:29]) == check
        and width
        and height
    )
    return PlainPng(width, height, mode, file) if mode and plain else None
