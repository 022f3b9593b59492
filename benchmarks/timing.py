"""The least time of several computations that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from math import inf
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Least:
    """Seconds an image of the pass that was the fastest on the clock.

    Attributes:
        wall: on the clock.
        cpu: of all threads of the process together.
    """

    wall: float = inf
    cpu: float = inf


def least_times(
    passes: Mapping[Name, Callable[[], object]], images: int, rounds: int
) -> dict[Name, Least]:
    """The least times an image of each pass by its name.

    What other processes do to the machine makes a pass longer, never shorter, and the least of
    many passes is nearest to what it takes when nothing does.

    Args:
        passes: that are compared.
        images: that one pass answers.
        rounds: in each of which every pass has one turn.
    """
    least = dict.fromkeys(passes, Least())
    for _ in range(rounds):
        for name, run in passes.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if wall / images < least[name].wall:
                least[name] = Least(wall / images, cpu / images)
    return least
