from __future__ import annotations

import gzip
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data import DataError, Part, data_directory, load, names, read_idx
from training.data.idx import content_sha256
from training.data.sources import MIRRORS, SOURCES

IMAGES = "mnist/t10k-images-idx3-ubyte.gz"
LABELS = "mnist/t10k-labels-idx1-ubyte.gz"


@pytest.fixture
def small_mnist(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory whose mnist test part is the sample, with its checksums pinned."""
    (tmp_path / "mnist").mkdir()
    for name, sample in ((IMAGES, "mnist-images-idx3"), (LABELS, "mnist-labels-idx1")):
        path = tmp_path / name
        shutil.copy(samples / f"{sample}-ubyte.gz", path)
        pinned = replace(
            SOURCES[name],
            digest=hashlib.sha256(path.read_bytes()).hexdigest(),
            content_sha256=content_sha256(read_idx(path)),
        )
        monkeypatch.setitem(SOURCES, name, pinned)
    return tmp_path


def test_names_are_sorted_and_complete() -> None:
    assert names() == (
        "cifar10",
        "digits",
        "fashion_mnist",
        "mnist",
        "notmnist",
        "omniglot",
        "usps",
    )


def test_loads_from_the_data_directory(small_mnist: Path) -> None:
    dataset = load("mnist", "test", small_mnist, may_download=False)
    assert dataset.name == "mnist"
    assert dataset.images.shape == (100, 28, 28, 1)
    assert dataset.classes == tuple("0123456789")
    assert dataset.labels[:4].tolist() == [7, 2, 1, 0]


def test_compressed_anew_is_accepted(small_mnist: Path) -> None:
    before = load("mnist", "test", small_mnist)
    path = small_mnist / IMAGES
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=1))
    assert load("mnist", "test", small_mnist).sha256 == before.sha256


def test_one_changed_pixel_is_refused_and_the_file_kept(small_mnist: Path) -> None:
    path = small_mnist / IMAGES
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))
    changed = path.read_bytes()
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz has sha256 [0-9a-f]{64}, not"):
        load("mnist", "test", small_mnist)
    assert path.read_bytes() == changed


def test_truncated_file_is_refused(small_mnist: Path) -> None:
    path = small_mnist / IMAGES
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="delete it to have it downloaded again"):
        load("mnist", "test", small_mnist)


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(DataError, match="named 'MNIST': use one of cifar10, digits, fashion_mnist"):
        load("MNIST", "test")


@pytest.mark.parametrize("part", ["validation", "", "Train"])
def test_unknown_part(part: Any) -> None:
    with pytest.raises(DataError, match="use train or test"):
        load("mnist", part)


@pytest.mark.parametrize("name", ["notmnist", "omniglot", "usps"])
def test_sets_without_a_train_part_say_so(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} has only a test part"):
        load(name, "train")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mnist", r"mnist/t10k-images-idx3-ubyte\.gz is missing: allow the download from https://"),
        ("omniglot", r"omniglot/t10k-images-idx3-ubyte\.gz is missing and nobody publishes it"),
        ("usps", r"usps/usps\.t\.bz2 is missing"),
        ("cifar10", r"cifar10/cifar-10-python\.tar\.gz is missing"),
    ],
)
def test_missing_files_say_what_to_do(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        load(name, "test", tmp_path, may_download=False)


def test_data_directory_prefers_option_then_environment_then_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GATE_DATA_DIR", "/from/environment")
    monkeypatch.setenv("XDG_CACHE_HOME", "/from/cache")
    assert data_directory(Path("/from/option")) == Path("/from/option")
    assert data_directory(Path("~/data")) == tmp_path / "data"
    assert data_directory() == Path("/from/environment")
    monkeypatch.setenv("GATE_DATA_DIR", "")
    assert data_directory() == Path("/from/cache/langevin-gate/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert data_directory() == tmp_path / ".cache/langevin-gate/data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_directory() == tmp_path / ".cache/langevin-gate/data"


def test_every_source_is_pinned_and_https_comes_first() -> None:
    for name, source in SOURCES.items():
        assert source.path == name
        assert len(source.digest) == {"sha256": 64, "md5": 32}[source.algorithm]
        schemes = [url.partition("://")[0] for url in source.urls]
        assert schemes == sorted(schemes, reverse=True)
    assert all(mirror.endswith("/") for mirrors in MIRRORS.values() for mirror in mirrors)


REAL: list[tuple[str, Part, tuple[int, ...], list[int]]] = [
    ("cifar10", "train", (50000, 32, 32, 3), [5000] * 10),
    ("cifar10", "test", (10000, 32, 32, 3), [1000] * 10),
    ("fashion_mnist", "train", (60000, 28, 28, 1), [6000] * 10),
    ("fashion_mnist", "test", (10000, 28, 28, 1), [1000] * 10),
    (
        "mnist",
        "train",
        (60000, 28, 28, 1),
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    ),
    ("mnist", "test", (10000, 28, 28, 1), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ("notmnist", "test", (10000, 28, 28, 1), [1000] * 10),
    ("omniglot", "test", (4840, 28, 28, 1), [480, 440, 480, 940, 800, 520, 840, 340]),
    ("usps", "test", (2007, 28, 28, 1), [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]),
]


@pytest.mark.parametrize(("name", "part", "shape", "counts"), REAL)
def test_full_sets(
    real_data: Path, name: str, part: Part, shape: tuple[int, ...], counts: list[int]
) -> None:
    dataset = load(name, part, real_data, may_download=False)
    assert dataset.images.shape == shape
    assert np.bincount(dataset.labels).tolist() == counts
    assert len(dataset.classes) == len(counts)


def test_full_colour_means_are_the_published_ones(real_data: Path) -> None:
    mean = load("cifar10", "train", real_data, may_download=False).images.mean(axis=(0, 1, 2)) / 255
    assert mean.round(4).tolist() == [0.4914, 0.4822, 0.4465]
