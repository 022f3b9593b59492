"""The named sets: what they are, which parts they have, and how each is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from training.data.cifar import read_archive, read_mosaic
from training.data.dataset import DataError, Dataset, from_arrays
from training.data.digits import read_digits
from training.data.idx import read_idx
from training.data.sources import SOURCES
from training.data.store import Store, data_directory
from training.data.usps import read_framed

Part: TypeAlias = Literal["train", "test"]

_Arrays: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64]]

_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_ALPHABETS = (
    "Balinese",
    "Early_Aramaic",
    "Greek",
    "Japanese_(katakana)",
    "Korean",
    "Latin",
    "Sanskrit",
    "Tagalog",
)
_OBJECTS = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


@dataclass(frozen=True)
class _NamedSet:
    classes: tuple[str, ...]
    parts: tuple[Part, ...]
    read: Callable[[str, Part, Store], _Arrays]


def names() -> tuple[str, ...]:
    """The names that `load` knows, sorted."""
    return tuple(sorted(_SETS))


def load(
    name: str, part: Part, data_dir: Path | None = None, *, may_download: bool = True
) -> Dataset:
    """Load one part of a named set.

    | name | train | test | H, W, C | where the files come from when they are missing |
    |---|---|---|---|---|
    | cifar10 | 50,000 | 10,000 | 32, 32, 3 | the authors' archive of pickles (170 MB) |
    | digits | 1,297 | 500 | 8, 8, 1 | built into scikit-learn; the split is ours |
    | fashion_mnist | 60,000 | 10,000 | 28, 28, 1 | public mirrors |
    | mnist | 60,000 | 10,000 | 28, 28, 1 | public mirrors |
    | notmnist | - | 10,000 | 28, 28, 1 | GitHub, davidflanagan/notMNIST-to-MNIST |
    | omniglot | - | 4,840 | 28, 28, 1 | nowhere: place them |
    | usps | - | 2,007 | 28, 28, 1 | LIBSVM's usps.t.bz2, processed here |

    Files are looked for at `<data_dir>/<name>/<file>` first, under their published names. A file
    that is there but has another checksum is an error; it is never overwritten. Downloads are
    checked before they are put there.

    omniglot is 8 alphabets of the original reduced to 28 x 28; only the processed files are known
    by checksum, so they cannot be made from the original here. usps is the test set, enlarged to
    20 x 20 inside MNIST's frame: processed files are used if they are there, otherwise the original
    is processed and accepted only if it gives the same pixels. cifar10 is read from mosaics
    (`train_1.webp` ... `test.webp`) if they are there; the archive, for which its authors publish
    only an md5, is otherwise unpickled by a reader that refuses all but plain arrays. USPS and
    CIFAR-10 state no licence.

    Args:
        name: one of `names()`.
        part: "train" or "test".
        data_dir: the data directory; by default `data_directory()`.
        may_download: False to use only files that are there already.

    Returns:
        The images in their canonical order (digits: in random order).

    Raises:
        DataError: unknown name or part, a part that the set does not have, a damaged file, or a
            file that is missing and cannot be had.
    """
    if name not in _SETS:
        raise DataError(f"there is no data set named {name!r}: use one of {', '.join(names())}")
    if part not in get_args(Part):
        raise DataError(f"there is no part named {part!r}: use train or test")
    named = _SETS[name]
    if part not in named.parts:
        only = " and ".join(named.parts)
        raise DataError(
            f"{name} has only a {only} part: it cannot be used to {part}, ask for {only}"
        )
    store = Store(data_directory(data_dir), may_download=may_download)
    images, labels = named.read(name, part, store)
    return from_arrays(images, labels, named.classes, name=name)


def _read_mnist_like(name: str, part: Part, store: Store) -> _Arrays:
    images, labels = _idx_names(name, part)
    return read_idx(store.get(images)), read_idx(store.get(labels)).astype(np.int64)


def _read_usps(name: str, part: Part, store: Store) -> _Arrays:
    images, labels = _idx_names(name, part)
    if store.has(images, labels):
        return _read_mnist_like(name, part, store)
    return read_framed(store.get("usps/usps.t.bz2"), SOURCES[images].content_sha256)


def _read_cifar10(name: str, part: Part, store: Store) -> _Arrays:
    stems = ["test"] if part == "test" else [f"train_{number}" for number in range(1, 6)]
    mosaics = [f"{name}/{stem}.webp" for stem in stems]
    _, labels = _idx_names(name, part)
    if store.has(*mosaics, labels):
        images = np.concatenate([read_mosaic(store.get(mosaic)) for mosaic in mosaics])
        return images, read_idx(store.get(labels)).astype(np.int64)
    batches = [
        stem.replace("train_", "data_batch_").replace("test", "test_batch") for stem in stems
    ]
    return read_archive(store.get("cifar10/cifar-10-python.tar.gz"), tuple(batches))


def _read_digits(_name: str, part: Part, _store: Store) -> _Arrays:
    return read_digits(part)


def _idx_names(name: str, part: Part) -> tuple[str, str]:
    stem = "train" if part == "train" else "t10k"
    return f"{name}/{stem}-images-idx3-ubyte.gz", f"{name}/{stem}-labels-idx1-ubyte.gz"


_SETS: dict[str, _NamedSet] = {
    "cifar10": _NamedSet(_OBJECTS, ("train", "test"), _read_cifar10),
    "digits": _NamedSet(_DIGITS, ("train", "test"), _read_digits),
    "fashion_mnist": _NamedSet(_CLOTHES, ("train", "test"), _read_mnist_like),
    "mnist": _NamedSet(_DIGITS, ("train", "test"), _read_mnist_like),
    "notmnist": _NamedSet(tuple("ABCDEFGHIJ"), ("test",), _read_mnist_like),
    "omniglot": _NamedSet(_ALPHABETS, ("test",), _read_mnist_like),
    "usps": _NamedSet(_DIGITS, ("test",), _read_usps),
}
