from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.data import DataError, load
from training.data.cifar import read_archive, read_mosaic
from training.data.sources import SOURCES

ARCHIVE = "cifar10/cifar-10-python.tar.gz"


def text(value: bytes) -> bytes:
    return b"U" + struct.pack("<B", len(value)) + value


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def pickled_array(planes: NDArray[np.uint8]) -> bytes:
    """The opcodes that Python 2 wrote for an array of bytes, protocol 2."""
    content = planes.tobytes()
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + number(0) + b"\x85"
    made += text(b"b") + b"tR"
    kind = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
    kind += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    shape = number(planes.shape[0]) + number(planes.shape[1]) + b"\x86"
    state = b"(" + number(1) + shape + kind + b"\x89T" + struct.pack("<i", len(content)) + content
    return made + state + b"tb"


def pickled_batch(planes: NDArray[np.uint8], labels: list[int]) -> bytes:
    entries = text(b"batch_label") + text(b"testing batch 1 of 1")
    entries += text(b"labels") + b"](" + b"".join(number(label) for label in labels) + b"e"
    return b"\x80\x02}(" + entries + text(b"data") + pickled_array(planes) + b"u."


def archive(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def planes() -> NDArray[np.uint8]:
    ramp = np.arange(3072, dtype=np.uint16).astype(np.uint8)
    return np.tile(ramp, (10000, 1)) + np.arange(10000, dtype=np.uint16).astype(np.uint8)[:, None]


def test_archive_as_python_2_wrote_it(
    planes: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [index % 10 for index in range(10000)]
    path = archive(
        tmp_path / ARCHIVE,
        {"batches.meta": b"unread", "test_batch": pickled_batch(planes, labels)},
    )
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(SOURCES, ARCHIVE, replace(SOURCES[ARCHIVE], digest=digest))
    dataset = load("cifar10", "test", tmp_path, may_download=False)
    assert dataset.images.shape == (10000, 32, 32, 3)
    assert dataset.labels.tolist() == labels
    assert dataset.images[7, 2, 5].tolist() == planes[7, [69, 1024 + 69, 2048 + 69]].tolist()
    with pytest.raises(DataError, match="has no member 'data_batch_1'"):
        load("cifar10", "train", tmp_path, may_download=False)


def test_archive_with_another_checksum_is_never_unpickled(tmp_path: Path) -> None:
    archive(tmp_path / ARCHIVE, {"test_batch": pickle.dumps({})})
    with pytest.raises(DataError, match="has md5"):
        load("cifar10", "test", tmp_path, may_download=False)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_pickles_that_run_code_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    content = pickle.dumps({"data": Malicious(marker)}, protocol=2)
    path = archive(tmp_path / "a.tar.gz", {"test_batch": content})
    with pytest.raises(DataError, match=r"refused (posix|nt)\.mkdir"):
        read_archive(path, ("test_batch",))
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        pickle.dumps([1, 2]),
        pickle.dumps({b"labels": [0] * 10000}),
        pickled_batch(np.zeros((10000, 3072), dtype=np.uint8), [0] * 9999),
        pickled_batch(np.zeros((10000, 3072), dtype=np.uint8), [10] * 10000),
        pickled_batch(np.zeros((1, 3072), dtype=np.uint8), [0] * 10000),
    ],
    ids=["empty", "junk", "list", "no pixels", "few labels", "label 10", "few images"],
)
def test_odd_batches_are_named(tmp_path: Path, content: bytes) -> None:
    path = archive(tmp_path / "a.tar.gz", {"test_batch": content})
    with pytest.raises(DataError, match="member 'cifar-10-batches-py/test_batch'") as caught:
        read_archive(path, ("test_batch",))
    assert "\n" not in str(caught.value)


def test_damaged_archive_is_named(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", {"other": os.urandom(5000)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"a\.tar\.gz is damaged"):
        read_archive(path, ("test_batch",))
    path.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"a\.tar\.gz is damaged"):
        read_archive(path, ("test_batch",))


def test_mosaic_tiles_come_row_by_row(tmp_path: Path) -> None:
    mosaic = np.zeros((3200, 3200, 3), dtype=np.uint8)
    mosaic[32 * 2 + 4, 32 * 7 + 9] = (10, 20, 30)
    path = tmp_path / "mosaic.webp"
    Image.fromarray(mosaic).save(path, lossless=True, quality=0, method=0)
    tiles = read_mosaic(path)
    assert tiles.shape == (10000, 32, 32, 3)
    assert tiles[207, 4, 9].tolist() == [10, 20, 30]
    assert tiles.sum() == 60


def test_odd_mosaics_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mosaic.webp"
    Image.new("RGB", (32, 32)).save(path)
    with pytest.raises(DataError, match=r"mosaic\.webp is 32 x 32 RGB, not"):
        read_mosaic(path)
    path.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"mosaic\.webp cannot be decoded"):
        read_mosaic(path)
