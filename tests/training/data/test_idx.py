from __future__ import annotations

import gzip
import hashlib
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from training.data import DataError, read_idx
from training.data.idx import content_sha256

HEADER = struct.pack(">BBBB2I", 0, 0, 8, 2, 2, 3)


def test_reads_real_mnist(samples: Path) -> None:
    images = read_idx(samples / "mnist-images-idx3-ubyte.gz")
    labels = read_idx(samples / "mnist-labels-idx1-ubyte.gz")
    assert images.shape == (100, 28, 28)
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert images.mean() / 255 == pytest.approx(0.13, abs=0.02)


def test_plain_and_gzipped_read_alike_whatever_the_name(tmp_path: Path) -> None:
    (tmp_path / "plain.gz").write_bytes(HEADER + b"abcdef")
    (tmp_path / "packed").write_bytes(gzip.compress(HEADER + b"abcdef"))
    expected = np.frombuffer(b"abcdef", np.uint8).reshape(2, 3)
    assert np.array_equal(read_idx(tmp_path / "plain.gz"), expected)
    assert np.array_equal(read_idx(tmp_path / "packed"), expected)


def test_content_digest_is_that_of_the_uncompressed_file(samples: Path) -> None:
    path = samples / "mnist-images-idx3-ubyte.gz"
    content = gzip.decompress(path.read_bytes())
    assert content_sha256(read_idx(path)) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not an IDX file"),
        (b"\x89PNG\r\n", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "IDX type 0x0d"),
        (b"\0\0\x08\x00", "declares 0 dimensions"),
        (b"\0\0\x08\x05" + 20 * b"\1", "declares 5 dimensions"),
        (HEADER[:7], "ends within its header"),
        (HEADER + b"abcde", "declares 6 bytes but holds 5"),
        (HEADER + b"abcdefg", "more than the 6 bytes"),
        (struct.pack(">BBBB2I", 0, 0, 8, 2, 0, 3), "empty shape"),
        (struct.pack(">BBBB2I", 0, 0, 8, 2, 2**32 - 1, 2**32 - 1), "more than the limit"),
    ],
)
def test_odd_files_are_refused_by_name(
    tmp_path: Path, content: bytes, says: str, packed: bool
) -> None:
    path = tmp_path / "odd"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=says) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_damaged_compression_is_refused(samples: Path, tmp_path: Path) -> None:
    whole = (samples / "mnist-images-idx3-ubyte.gz").read_bytes()
    path = tmp_path / "damaged.gz"
    for damaged in (
        whole[: len(whole) // 2],
        whole[:5],
        whole[:-8] + bytes(8),
        whole[:10] + b"\xff" * (len(whole) - 10),
        whole + b"trailing",
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            read_idx(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere cannot be read \(No such file"):
        read_idx(tmp_path / "nowhere")


def test_gzip_bomb_does_not_fill_memory(tmp_path: Path) -> None:
    packer = zlib.compressobj(1, wbits=31)
    zeros = bytes(1 << 20)
    bomb = packer.compress(HEADER) + b"".join(packer.compress(zeros) for _ in range(64))
    path = tmp_path / "bomb.gz"
    path.write_bytes(bomb + packer.flush())
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than the 6 bytes"):
            read_idx(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_large_declaration_reserves_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "boast"
    path.write_bytes(struct.pack(">BBBB1I", 0, 0, 8, 1, 1 << 30) + b"little")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="holds 6"):
            read_idx(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
