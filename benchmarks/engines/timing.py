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
    """Least seconds of one pass.

    Attributes:
        wall: on the clock.
        cpu: of all threads of the process together.
    """

    wall: float = inf
    cpu: float = inf


def least_times(passes: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, Least]:
    """The least times of each pass by its name, of `rounds` rounds in which each has one turn.

    What other processes do to the machine makes a pass longer, never shorter, and the least of
    many passes is nearest to what it takes when nothing does.
    """
    least = dict.fromkeys(passes, Least())
    for _ in range(rounds):
        for name, run in passes.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            least[name] = Least(min(least[name].wall, wall), min(least[name].cpu, cpu))
    return least
