"""The IDX format of MNIST: a magic number, the dimensions, then the bytes; plain or gzipped.

Layout, all big-endian: two zero bytes, the type code, the number of dimensions, one uint32 for
each dimension, and the data in row-major order. Only type code 0x08 (unsigned byte) is read.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import DataError

MAX_BYTES = 1 << 30
"""Largest array that `read_idx` accepts unless told otherwise, in bytes."""

_UNSIGNED_BYTE = 0x08
_MAX_DIMENSIONS = 4
_CHUNK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path, max_bytes: int = MAX_BYTES) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, gzipped or plain (told apart by content, not by name).

    Never holds more than the declared size, nor more than `max_bytes`, however much a compressed
    file would expand to.

    Args:
        path: the file.
        max_bytes: refuse a file that declares more data than this.

    Returns:
        uint8, with the 1 to 4 dimensions that the file declares.

    Raises:
        DataError: the file cannot be read, is not IDX of unsigned bytes, is damaged or truncated,
            holds more than it declares, or declares more than `max_bytes`. Names the file.
    """
    try:
        with path.open("rb") as stream:
            compressed = stream.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            stream.seek(0)
            if not compressed:
                return _decode(stream, path, max_bytes)
            with gzip.GzipFile(fileobj=stream) as expanded:
                return _decode(io.BufferedReader(expanded), path, max_bytes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged ({error}): replace it") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the path") from error


def content_sha256(array: NDArray[np.uint8]) -> str:
    """Hexadecimal sha256 of the uncompressed IDX file that holds this array."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, _UNSIGNED_BYTE, array.ndim, *array.shape)
    digest = hashlib.sha256(header)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _decode(stream: BinaryIO, path: Path, max_bytes: int) -> NDArray[np.uint8]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(f"{path} is not an IDX file (it starts with {magic!r}): replace it")
    if magic[2] != _UNSIGNED_BYTE:
        raise DataError(
            f"{path} holds IDX type 0x{magic[2]:02x}: only unsigned bytes (0x08) can be read"
        )
    num_dimensions = magic[3]
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise DataError(
            f"{path} declares {num_dimensions} dimensions, not 1 to {_MAX_DIMENSIONS}: replace it"
        )
    header = stream.read(4 * num_dimensions)
    if len(header) < 4 * num_dimensions:
        raise DataError(f"{path} ends within its header: replace it")
    shape = struct.unpack(f">{num_dimensions}I", header)
    return np.frombuffer(_payload(stream, path, shape, max_bytes), np.uint8).reshape(shape)


def _payload(stream: BinaryIO, path: Path, shape: tuple[int, ...], max_bytes: int) -> bytearray:
    declared = math.prod(shape)
    if declared == 0:
        raise DataError(f"{path} declares the empty shape {shape}: replace it")
    if declared > max_bytes:
        raise DataError(
            f"{path} declares {declared} bytes, more than the limit of {max_bytes}: replace it or "
            "raise max_bytes"
        )
    payload = bytearray()
    while len(payload) < declared:
        chunk = stream.read(min(_CHUNK, declared - len(payload)))
        if not chunk:
            raise DataError(
                f"{path} declares {declared} bytes but holds {len(payload)}: replace it"
            )
        payload += chunk
    if stream.read(1):
        raise DataError(f"{path} holds more than the {declared} bytes it declares: replace it")
    return payload
