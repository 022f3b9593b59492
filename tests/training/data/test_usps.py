from __future__ import annotations

import bz2
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data import DataError, load, read_idx
from training.data.idx import content_sha256
from training.data.sources import SOURCES
from training.data.store import Store
from training.data.usps import frame, read_framed, read_values

FIRST_ROW = (
    "-0.999999 -0.999928 -0.997885 -0.973729 -0.855772 -0.597416 -0.289254 0.001891 "
    "0.199196 0.292162 0.058410 -0.398885 -0.782804 -0.958667 -0.997106 -0.999930"
)
"""The first 16 of 256 values on the first line of the published text."""


def as_text(images: NDArray[np.uint8], digits: NDArray[np.int64]) -> bytes:
    lines = []
    for image, digit in zip(images, digits, strict=True):
        values = (f"{i}:{v / 127.5 - 1:.6f}" for i, v in enumerate(image.ravel(), start=1))
        lines.append(f"{digit + 1} {' '.join(values)} ")
    return bz2.compress("\n".join(lines).encode() + b"\n")


def test_text_is_read_and_rounded_to_the_nearest(tmp_path: Path) -> None:
    images = np.arange(512, dtype=np.uint16).astype(np.uint8).reshape(2, 16, 16)
    path = tmp_path / "usps.t.bz2"
    path.write_bytes(as_text(images, np.array([9, 0])))
    values, digits = read_values(path)
    assert digits.tolist() == [9, 0]
    assert values.shape == (2, 16, 16)
    assert values.min() == -1
    assert values.max() == 1
    framed, _ = read_framed(path, content_sha256(frame(images)))
    assert np.array_equal(framed, frame(images))


def test_other_pixels_than_pinned_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "usps.t.bz2"
    path.write_bytes(as_text(np.zeros((1, 16, 16), dtype=np.uint8), np.array([3])))
    with pytest.raises(DataError, match="other pixels"):
        read_framed(path, 64 * "0")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is empty"),
        (b"1 1:0.5\n", "line 1 is not"),
        (b"11 " + b" ".join(b"%d:0" % i for i in range(1, 257)), "line 1 is not"),
        (b"1 " + b" ".join(b"%d:0" % i for i in range(256)), "line 1 is not"),
        (b"1 " + b" ".join(b"%d:nan" % i for i in range(1, 257)), "line 1 is not"),
        (b"1 " + b" ".join(b"%d:2" % i for i in range(1, 257)), "line 1 is not"),
        (b"1 " + b" ".join(b"%d:0" % i for i in range(1, 257)) + b"\n\xff", "line 2 is not"),
    ],
)
def test_odd_text_is_refused(tmp_path: Path, text: bytes, says: str) -> None:
    path = tmp_path / "usps.t.bz2"
    path.write_bytes(bz2.compress(text))
    with pytest.raises(DataError, match=says):
        read_values(path)


def test_damage_and_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "usps.t.bz2"
    path.write_bytes(b"not bzip2")
    with pytest.raises(DataError, match="damaged"):
        read_values(path)
    path.write_bytes(bz2.compress(bytes(1000))[:-5])
    with pytest.raises(DataError, match="damaged"):
        read_values(path)
    path.write_bytes(bz2.compress(bytes(33 << 20)))
    with pytest.raises(DataError, match="expands to more than"):
        read_values(path)


def test_framing_and_rounding_give_the_stored_pixels(real_data: Path) -> None:
    stored = read_idx(Store(real_data).get("usps/t10k-images-idx3-ubyte.gz"))
    original = real_data / "usps/t10k-images-16x16-idx3-ubyte.gz"
    if not original.exists():
        pytest.skip("needs the 16 x 16 images")
    pixels = read_idx(original)
    assert np.array_equal(frame(pixels), stored)
    values = np.array([float(value) for value in FIRST_ROW.split()])
    assert np.rint((values + 1) / 2 * 255).tolist() == pixels[0, 0].tolist()


def test_original_gives_the_same_data_set_as_the_processed_files(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = real_data / "usps/t10k-images-16x16-idx3-ubyte.gz"
    if not original.exists():
        pytest.skip("needs the 16 x 16 images")
    processed = load("usps", "test", real_data, may_download=False)
    (tmp_path / "usps").mkdir()
    path = tmp_path / "usps" / "usps.t.bz2"
    path.write_bytes(as_text(read_idx(original), processed.labels))
    monkeypatch.setattr("training.data.store.verify", lambda path, source: None)
    assert SOURCES["usps/usps.t.bz2"].algorithm == "md5"
    assert load("usps", "test", tmp_path, may_download=False).sha256 == processed.sha256
