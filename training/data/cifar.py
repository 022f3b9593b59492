"""CIFAR-10 from its authors' archive, or from lossless mosaics of the same pixels."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.dataset import DataError

_EDGE = 32
_TILES = 100
_BATCH = _TILES * _TILES
_MAX_PICKLE = 64 << 20


def read_mosaic(path: Path) -> NDArray[np.uint8]:
    """Read a lossless WebP of 100 x 100 tiles, row by row.

    Returns:
        uint8 [10000, 32, 32, 3], RGB.

    Raises:
        DataError: not a WebP image of 3200 x 3200 RGB pixels. Names the file.
    """
    try:
        with Image.open(path, formats=("WEBP",)) as image:
            if image.size != (_TILES * _EDGE, _TILES * _EDGE) or image.mode != "RGB":
                raise DataError(
                    f"{path} is {image.width} x {image.height} {image.mode}, not a mosaic of "
                    f"{_TILES} x {_TILES} RGB tiles: replace it"
                )
            pixels = np.asarray(image)
    except OSError as error:
        raise DataError(f"{path} cannot be decoded as WebP: replace it") from error
    tiles = pixels.reshape(_TILES, _EDGE, _TILES, _EDGE, 3).swapaxes(1, 2)
    return tiles.reshape(-1, _EDGE, _EDGE, 3)


def read_archive(
    path: Path, batches: tuple[str, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read batches of `cifar-10-python.tar.gz`, whose checksum the caller has verified.

    Its members are pickles. They are read by an unpickler that can make numpy arrays, bytes and
    Python's plain containers, and refuses every other name.

    Args:
        path: the archive.
        batches: member names without their folder, such as `data_batch_1`.

    Returns:
        uint8 [10000 * batches, 32, 32, 3] RGB, and labels int64 [10000 * batches].

    Raises:
        DataError: damaged, a batch is missing, or a batch holds anything but what it should.
    """
    found: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in batches or not member.isreg():
                    continue
                content = archive.extractfile(member)
                if content is None or member.size > _MAX_PICKLE:
                    raise DataError(f"{path} has an odd member {member.name!r}: replace it")
                found[name] = _batch(content.read(), f"{path} member {member.name!r}")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is damaged ({reason}): replace it") from error
    for name in batches:
        if name not in found:
            raise DataError(f"{path} has no member {name!r}: replace it")
    images = np.concatenate([found[name][0] for name in batches])
    labels = np.concatenate([found[name][1] for name in batches])
    return images, labels


def _batch(content: bytes, source: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a pickle can raise whatever it likes
        reason = " ".join(str(error).split())
        raise DataError(f"{source} is not a batch of images ({reason}): replace it") from error
    planes = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(b"labels") if isinstance(batch, dict) else None
    expected = (_BATCH, 3 * _EDGE * _EDGE)
    if (
        not isinstance(planes, np.ndarray)
        or planes.dtype != np.uint8
        or planes.shape != expected
        or not isinstance(labels, list)
        or len(labels) != _BATCH
        or not all(type(label) is int and 0 <= label < 10 for label in labels)
    ):
        raise DataError(f"{source} does not hold {_BATCH} images and labels: replace it")
    images = planes.reshape(-1, 3, _EDGE, _EDGE).transpose(0, 2, 3, 1)
    return images, np.array(labels, dtype=np.int64)


def _reconstruct(kind: object, shape: tuple[int, ...], _dtype: bytes) -> NDArray[Any]:
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError("an array of another kind")
    return np.ndarray(shape, dtype=np.int8)


_KNOWN: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the three names that a pickled array of numbers needs, and no other."""

    def find_class(self, module_name: str, global_name: str, /) -> object:
        try:
            return _KNOWN[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused {module_name}.{global_name}") from None
