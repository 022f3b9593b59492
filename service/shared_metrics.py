"""Metrics of several workers, added up at a scrape of any: prometheus_client's multiprocess mode.

Each worker writes its numbers to files of its own in one directory, mapped to memory. They are
named by the worker's place, not by its process: whoever takes the place of a worker that died goes
on from its counts, so that no counter ever falls and no file is left behind.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead


def share_values(place: int, directory: Path) -> None:
    """Keep the values of all metrics that this process makes from now on in `directory`."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]


def sums(directory: Path) -> CollectorRegistry:
    """A registry that adds up, when it is collected, what all workers have written."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    return registry


def forget_gauges(place: int, directory: Path) -> None:
    """Take the gauges of a worker that died out of the sums; its counters stay."""
    mark_process_dead(place, str(directory))  # type: ignore[no-untyped-call]
