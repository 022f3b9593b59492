"""The sets that every method is judged on, in groups: `familiar`, `foreign` and `shift`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

from benchmarks.foreign import foreign_sets
from benchmarks.shift import shifted_sets
from training.data import Dataset
from training.run import Run

A = TypeVar("A")
B = TypeVar("B")
Grouped: TypeAlias = dict[str, dict[str, A]]


def grouped_sets(run: Run) -> Grouped[Dataset]:
    """The calibration and test images, `foreign_sets` and `shifted_sets` of a run."""
    problem = run.problem
    return {
        "familiar": {"calibration": problem.calibration, "test": problem.test},
        "foreign": foreign_sets(run),
        "shift": shifted_sets(run),
    }


def each(change: Callable[[A], B], groups: Grouped[A]) -> Grouped[B]:
    """Everything in the groups, changed."""
    return {
        group: {name: change(part) for name, part in parts.items()}
        for group, parts in groups.items()
    }
