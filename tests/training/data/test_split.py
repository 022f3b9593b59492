from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.data import DataError, stratified_split


def uneven_labels(num_images: int = 6000) -> NDArray[np.int64]:
    """Sorted by class, with classes of unlike size: the worst case for a contiguous cut."""
    return np.sort(np.random.default_rng(5).integers(0, 10, num_images) % 7)


def test_membership_is_random_within_each_class() -> None:
    """The mean position of a random sample is known: a contiguous cut is off by many sigmas.

    For n of N positions drawn without replacement, the mean has expectation (N - 1) / 2 and
    variance (N + 1) (N - n) / (12 n). z scores of classes are independent within a part.
    """
    labels = uneven_labels()
    scores = []
    for seed in range(20):
        split = stratified_split(labels, {"calibration": 1500, "test": 900}, seed)
        for label in range(7):
            members = np.flatnonzero(labels == label)
            for part in split.values():
                ranks = np.searchsorted(members, part[labels[part] == label])
                n, total = len(ranks), len(members)
                deviation = math.sqrt((total + 1) * (total - n) / (12 * n))
                scores.append((ranks.mean() - (total - 1) / 2) / deviation)
    assert np.abs(scores).max() < 4.5
    assert np.var(scores) == pytest.approx(1.0, abs=0.25)


def test_positions_within_a_part_are_in_random_order() -> None:
    part = stratified_split(uneven_labels(), {"test": 2000}, seed=1)["train"]
    correlation = np.corrcoef(np.arange(len(part)), part)[0, 1]
    assert abs(correlation) < 4.5 / math.sqrt(len(part))


def test_every_image_is_as_likely_as_any_other() -> None:
    labels = np.repeat([0, 1, 2], [5, 10, 15])
    counts = np.zeros(30)
    for seed in range(3000):
        counts[stratified_split(labels, {"test": 6}, seed)["test"]] += 1
    expected = 3000 * 6 / 30
    assert np.abs(counts - expected).max() < 4.5 * math.sqrt(expected * (1 - 6 / 30))


@settings(max_examples=300, deadline=None)
@given(
    labels=st.lists(st.integers(-3, 8), min_size=1, max_size=120),
    wanted=st.lists(st.integers(1, 60), max_size=5),
    seed=st.integers(0, 2**64),
)
def test_disjoint_complete_exact_and_stratified(
    labels: list[int], wanted: list[int], seed: int
) -> None:
    targets = np.array(labels)
    sizes: dict[str, int] = {}
    for number, size in enumerate(wanted):
        if sum(sizes.values()) + size <= len(targets):
            sizes[f"part {number}"] = size
    split = stratified_split(targets, sizes, seed)

    assert list(split) == [*sizes, "train"]
    assert np.array_equal(np.sort(np.concatenate(list(split.values()))), np.arange(len(targets)))
    for name, size in sizes.items():
        assert len(split[name]) == size
    for part in split.values():
        assert part.dtype == np.int64
        for label in np.unique(targets):
            share = (targets == label).sum() * len(part) / len(targets)
            assert abs((targets[part] == label).sum() - share) <= 1


def test_same_seed_same_split_and_other_seed_another() -> None:
    labels = uneven_labels()
    first = stratified_split(labels, {"test": 1000}, seed=3)
    again = stratified_split(labels, {"test": 1000}, seed=3)
    other = stratified_split(labels, {"test": 1000}, seed=4)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(np.sort(first["test"]), np.sort(other["test"]))


def test_split_stays_as_it_was_when_this_was_written() -> None:
    split = stratified_split(np.array([0, 0, 1, 1, 2, 2]), {"test": 3}, seed=0)
    assert split["test"].tolist() == [2, 4, 0]
    assert len(split["train"]) == 3


def test_all_may_be_asked_for_and_nothing_be_left() -> None:
    split = stratified_split(np.array([0, 1, 1]), {"test": 3}, seed=0)
    assert split["train"].shape == (0,)
    assert stratified_split(np.array([0, 1, 1]), {}, seed=0).keys() == {"train"}


@pytest.mark.parametrize(
    ("labels", "sizes", "seed", "says"),
    [
        ([0, 1], {"test": 2, "calibration": 1}, 0, "ask for 3 images but there are 2"),
        ([0, 1], {"train": 1}, 0, "leave it out"),
        ([0, 1], {"test": 0}, 0, "size 0"),
        ([0, 1], {"test": 1}, -1, "seed is -1"),
        ([], {"test": 1}, 0, "list of integers"),
        ([0.5, 1.0], {"test": 1}, 0, "list of integers"),
        ([[0, 1]], {"test": 1}, 0, "list of integers"),
    ],
)
def test_impossible_splits_are_refused(
    labels: list[int], sizes: dict[str, int], seed: int, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        stratified_split(np.array(labels), sizes, seed)
