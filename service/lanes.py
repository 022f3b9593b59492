"""Jobs and the order in which their images wait: those under way by stage, new ones by client.

New images begin by turns, one of each client a turn: start-time fair queueing (Goyal, Vin & Cheng
1996) with an image as the packet. All being alike, virtual time is the number of the turn, and a
client that has begun all its images owes less than one turn and is forgotten.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Generic, NamedTuple, Protocol, TypeVar

from service.errors import GateError


class Case(Protocol):
    """One image on its way through the members."""

    @property
    def stage(self) -> int:
        """Steps that it has had."""

    @property
    def settled(self) -> bool:
        """Whether it needs no further step."""


AnyCase = TypeVar("AnyCase", bound=Case)


class Times(NamedTuple):
    """A request's seconds until a step first took of its images, and then until all settled."""

    queue_seconds: float
    infer_seconds: float


Answer = Callable[[Times | GateError], None]


@dataclass(eq=False, slots=True)
class Job(Generic[AnyCase]):
    """The images of one request, from its arrival to its answer."""

    cases: Sequence[AnyCase]
    client: str
    lane: Lane[AnyCase]
    arrived: float
    deadline: float
    answer: Answer
    left: int  # cases that are not settled; none if no one wants them any more
    started: float = math.inf

    def wanted(self, now: float) -> bool:
        """Whether a step would not be in vain."""
        return self.left > 0 and now < self.deadline


Place = tuple[Job[AnyCase], AnyCase]
Line = list[Place[AnyCase]]


class Lane(Generic[AnyCase]):
    """The foreground, or the background: how many images are not settled, and those that wait."""

    def __init__(self) -> None:
        self.images = 0
        self._under_way: defaultdict[int, Line[AnyCase]] = defaultdict(list)  # by stage
        self._new: OrderedDict[str, Line[AnyCase]] = OrderedDict()  # by client, next turn first

    @property
    def waiting(self) -> int:
        """Images that wait for their first step or another."""
        return sum(map(len, (*self._under_way.values(), *self._new.values())))

    def add(self, job: Job[AnyCase]) -> None:
        """Let the new images of a job wait."""
        line = self._new.setdefault(job.client, [])
        index = bisect(line, job.deadline, key=lambda place: place[0].deadline)
        line[index:index] = [(job, case) for case in job.cases]
        self.images += job.left

    def stage(self, now: float, most: int) -> int:
        """Whose turn it is, if a step has room for `most` images."""
        lines = {stage: line[:most] for stage, line in self._under_way.items() if line}
        new = list(islice(chain.from_iterable(self._new.values()), most))
        if lines and len(new) < most:
            return max(lines)
        if new:
            lines[0] = new
        waited = (
            (sum(now - job.arrived for job, _ in line), stage) for stage, line in lines.items()
        )
        return max(waited, default=(0.0, 0))[1]

    def pop(self, stage: int) -> Place[AnyCase] | None:
        """The first image in order that is at `stage`."""
        if line := self._under_way.get(stage):
            return line.pop(0)
        if stage or not self._new:
            return None
        client, line = self._new.popitem(last=False)
        place = line.pop(0)
        if line:
            self._new[client] = line
        return place

    def put_back(self, job: Job[AnyCase], case: AnyCase) -> None:
        """Let an image wait for another step."""
        self._under_way[case.stage].append((job, case))

    def drop(self, job: Job[AnyCase]) -> None:
        """Forget a job that no one wants any more."""
        self.images -= job.left
        job.left = 0
        for line in (self._new.get(job.client, []), *self._under_way.values()):
            line[:] = [place for place in line if place[0] is not job]
        if not self._new.get(job.client, True):
            del self._new[job.client]

    def work(self, running: int, job: Job[AnyCase] | None = None) -> list[tuple[int, int]]:
        """(stage, images) of all, those in the step at `running` too; or of what `job` waits for.

        The last image of a job that is to join begins in the turn of its number among its client's.
        """
        new = sum(map(len, self._new.values()))
        under_way = [(stage, len(line)) for stage, line in self._under_way.items()]
        stepping = self.images - new - sum(images for _, images in under_way)
        if job:
            own = self._new.get(job.client, [])
            turn = job.left + bisect(own, job.deadline, key=lambda place: place[0].deadline)
            others = (min(len(line), turn) for line in self._new.values() if line is not own)
            new = turn + sum(others)
        return [(running, stepping), *under_way, (0, new)]
