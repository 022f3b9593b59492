"""Cut a data set into parts at random, with each class in its due share in every part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import DataError

Split: TypeAlias = dict[str, NDArray[np.int64]]
"""Positions of each part by its name: disjoint, and complete together."""

REST = "train"
"""The part that receives every image that no other part asked for."""


def stratified_split(labels: NDArray[Any], sizes: Mapping[str, int], seed: int) -> Split:
    """Split N labelled images at random into parts of exactly the given sizes.

    In each part, "train" included, the number of images of each class is within one of its
    proportional share, n_class * n_part / N. Which images those are is drawn uniformly, and so is
    the order of the positions within a part: a prefix of a part is a random sample of it. The same
    labels, sizes and seed give the same split.

    Why: neighbours in a file often resemble each other (the halves of MNIST's test file have
    different writers), and held-out data must be exchangeable with the data it stands for.

    Args:
        labels: class of each image, integers [N].
        sizes: number of images of each part but "train", at least 1 each, in the order drawn.
        seed: seed of numpy's PCG64 generator, 0 or more.

    Returns:
        Positions in 0 to N - 1 of each part, int64: the parts of `sizes`, then "train".

    Raises:
        DataError: labels that are not a list of integers, a part named "train", a size below 1,
            sizes that exceed N together, or a negative seed.
    """
    targets = np.asarray(labels)
    _check(targets, sizes, seed)
    _, targets = np.unique(targets, return_inverse=True)
    generator = np.random.Generator(np.random.PCG64(seed))
    quotas = _quotas(np.bincount(targets), list(sizes.values()))
    names = [*sizes, REST]

    pieces: dict[str, list[NDArray[np.int64]]] = {name: [] for name in names}
    for label, row in enumerate(quotas):
        members = generator.permutation(np.flatnonzero(targets == label))
        for name, piece in zip(names, np.split(members, np.cumsum(row)[:-1]), strict=True):
            pieces[name].append(piece)
    return {
        name: generator.permutation(np.concatenate(pieces[name])).astype(np.int64) for name in names
    }


def _check(labels: NDArray[Any], sizes: Mapping[str, int], seed: int) -> None:
    if labels.ndim != 1 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}: give a list of integers"
        )
    if REST in sizes:
        raise DataError(f'"{REST}" is what the other parts leave over: leave it out of sizes')
    for name, size in sizes.items():
        if size < 1:
            raise DataError(f"part {name!r} has size {size}: give at least 1")
    total = sum(sizes.values())
    if total > labels.size:
        raise DataError(
            f"the parts ask for {total} images but there are {labels.size}: make them smaller"
        )
    if seed < 0:
        raise DataError(f"seed is {seed}: give 0 or more")


def _quotas(class_counts: NDArray[np.int64], sizes: list[int]) -> NDArray[np.int64]:
    """Whole images of each class in each part, int64 [K, parts], with both margins exact.

    Rounds the proportional table down, then hands out what is missing, at most one for each cell.
    Giving each part's missing images to the classes that miss most always comes out even: it is
    the Gale-Ryser construction of a 0/1 table from its margins.
    """
    total = int(class_counts.sum())
    parts = np.array([*sizes, total - sum(sizes)], dtype=np.int64)
    exact = np.outer(class_counts, parts)
    quotas: NDArray[np.int64] = exact // total
    remainder = exact % total
    missing = class_counts - quotas.sum(axis=1)
    for part, short in enumerate(parts - quotas.sum(axis=0)):
        chosen = np.lexsort((-remainder[:, part], -missing))[:short]
        quotas[chosen, part] += 1
        missing[chosen] -= 1
    return quotas
