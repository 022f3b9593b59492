"""Which images take the next step: a bounded queue, in a fair order, and steps without waiting.

One worker thread takes images through the members. A step has up to `max_batch` images that have
had the same steps before; it takes what waits, and never waits for company. Whoever is settled
leaves, the others wait for their next step among the newcomers. The order:

1. foreground before background;
2. the stage whose images, as many as a step has room for, have waited longest in all since they
   arrived, and of equals the latest: a step for few costs nearly as much as one for many, so the
   few that are not settled early wait for company, but not for ever. Of one stage, those that came
   to it first;
3. new images by turns, one of each client a turn: start-time fair queueing (Goyal, Vin & Cheng
   1996) with an image as the packet. All being alike, virtual time is the number of the turn, and
   a client that has begun all its images owes less than one turn and is forgotten;
4. of one client, the earlier deadline first, then the earlier arrival.

The first in order leads a step, and the next of its stage fill it up. What was cancelled or is past
its deadline is dropped before it costs any more; what would be late is refused at the door.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from bisect import bisect
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Generic, Protocol, TypeVar

from service.cost import Cost
from service.errors import DeadlineError, GateError, InferenceError, UnavailableError

Clock = Callable[[], float]

_TOO_LATE = "no answer within the time limit"

log = logging.getLogger("service.scheduler")


class Case(Protocol):
    """One image on its way through the members."""

    @property
    def stage(self) -> int:
        """Steps that it has had."""

    @property
    def settled(self) -> bool:
        """Whether it needs no further step."""


AnyCase = TypeVar("AnyCase", bound=Case)


@dataclass(frozen=True)
class Step:
    """One step: its images, the steps that they had had before, and the seconds it took."""

    images: int
    stage: int
    seconds: float


@dataclass(frozen=True)
class Times:
    """A request's seconds until a step first took of its images, and then until all settled."""

    queue_seconds: float
    infer_seconds: float


@dataclass(eq=False, slots=True)
class _Job(Generic[AnyCase]):
    cases: Sequence[AnyCase]
    client: str
    lane: _Lane[AnyCase]
    arrived: float
    deadline: float
    future: asyncio.Future[Times]
    left: int  # cases that are not settled; none if no one wants them any more
    started: float = math.inf

    def wanted(self, now: float) -> bool:
        return self.left > 0 and now < self.deadline and not self.future.done()


_Place = tuple[_Job[AnyCase], AnyCase]
_Line = list[_Place[AnyCase]]
_Answers = list[tuple[_Job[AnyCase], Times | GateError]]


class _Lane(Generic[AnyCase]):
    """The foreground, or the background: how many images are not settled, and those that wait."""

    def __init__(self) -> None:
        self.images = 0
        self._under_way: defaultdict[int, _Line[AnyCase]] = defaultdict(list)  # by stage
        self._new: OrderedDict[str, _Line[AnyCase]] = OrderedDict()  # by client, next turn first

    @property
    def waiting(self) -> int:
        return sum(map(len, (*self._under_way.values(), *self._new.values())))

    def add(self, job: _Job[AnyCase]) -> None:
        line = self._new.setdefault(job.client, [])
        index = bisect(line, job.deadline, key=lambda place: place[0].deadline)
        line[index:index] = [(job, case) for case in job.cases]
        self.images += job.left

    def stage(self, now: float, most: int) -> int:
        """Whose turn it is, if a step has room for `most` images."""
        lines: list[tuple[int, Iterable[_Place[AnyCase]]]] = [
            (stage, line) for stage, line in self._under_way.items() if line
        ]
        if self._new:
            lines.append((0, chain.from_iterable(self._new.values())))
        waited = [
            (sum(now - job.arrived for job, _ in islice(line, most)), stage)
            for stage, line in lines
        ]
        return max(waited, default=(0.0, 0))[1]

    def pop(self, stage: int) -> _Place[AnyCase] | None:
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

    def put_back(self, job: _Job[AnyCase], case: AnyCase) -> None:
        self._under_way[case.stage].append((job, case))

    def drop(self, job: _Job[AnyCase]) -> None:
        """Forget a job that no one wants any more."""
        self.images -= job.left
        job.left = 0
        for line in (self._new.get(job.client, []), *self._under_way.values()):
            line[:] = [place for place in line if place[0] is not job]
        if not self._new.get(job.client, True):
            del self._new[job.client]

    def work(self, running: int, job: _Job[AnyCase] | None = None) -> list[tuple[int, int]]:
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


class Scheduler(Generic[AnyCase]):
    """Admits requests on one event loop, and takes their images through the members in a thread."""

    def __init__(
        self,
        step: Callable[[Sequence[AnyCase]], None],
        *,
        max_batch: int,
        max_queue: int,
        clock: Clock = time.monotonic,
        observe: Callable[[Step], None] = lambda step: None,
    ) -> None:
        """Start the worker.

        Args:
            step: takes 1 to `max_batch` unsettled cases of one stage to the next, all of them or,
                if it raises, none; called in the worker thread only.
            max_batch: images in one step.
            max_queue: unsettled images of all requests; those of the background may be half of it.
            clock: seconds, monotonic.
            observe: told of every step, in the worker thread.
        """
        self._step, self._observe, self._clock = step, observe, clock
        self._max_batch, self._max_queue = max_batch, max_queue
        self._cost = Cost()
        self._lanes: tuple[_Lane[AnyCase], _Lane[AnyCase]] = _Lane(), _Lane()
        self._jobs: set[_Job[AnyCase]] = set()
        self._running = 0  # stage of the step
        self._idle = False
        self._closing = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="inference", daemon=True)
        self._worker.start()

    @property
    def queued(self) -> int:
        """Images that wait, be it for their first step or another."""
        with self._changed:
            return sum(lane.waiting for lane in self._lanes)

    @property
    def alive(self) -> bool:
        """Whether the worker runs and takes requests."""
        return self._worker.is_alive() and not self._closing

    async def submit(
        self,
        cases: Sequence[AnyCase],
        deadline: float,
        *,
        client: str = "",
        background: bool = False,
    ) -> Times:
        """Have new cases (stage 0, not settled) settled before `deadline`, a time of the clock.

        Clients take turns. Work in the background is done beside the foreground's, or after it.

        Raises:
            UnavailableError: there is no room; or it would be late, by what steps cost, and there
                is other work (an idle scheduler tries, so a wrong estimate corrects itself); or the
                scheduler is closing.
            DeadlineError: it passed before all were settled.
            InferenceError: `step` raised, for a case of this request alone too.
        """
        now = self._clock()
        if now >= deadline:
            raise DeadlineError(_TOO_LATE)
        if not cases:
            return Times(0.0, 0.0)
        lane, loop = self._lanes[background], asyncio.get_running_loop()
        job = _Job(cases, client, lane, now, deadline, loop.create_future(), len(cases))
        with self._changed:
            self._check(job)
            lane.add(job)
            if self._idle:
                self._changed.notify()
        self._jobs.add(job)
        timer = loop.call_later(deadline - now, _expire, job)
        try:
            return await job.future
        finally:
            timer.cancel()
            self._jobs.remove(job)
            if job.left:
                with self._changed:
                    lane.drop(job)

    async def close(self, seconds: float) -> None:
        """Take nothing more, finish what was taken within `seconds`, fail the rest and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._worker.join, seconds)
        _answer([(job, _unavailable("the service is stopping")) for job in self._jobs if job.left])

    def _check(self, job: _Job[AnyCase]) -> None:
        """Refuse a job for which there is no room, or no time."""
        if self._closing:
            raise _unavailable("the service is stopping")
        (foreground, background), cost = self._lanes, self._cost
        ahead, room = foreground.images, self._max_queue - foreground.images - background.images
        if job.lane is background:
            ahead += background.images
            room = min(room, self._max_queue // 2 - background.images)
        if job.left > room:
            seconds = cost.seconds([(0, job.left - room)], self._max_batch)
            raise _unavailable(f"the queue has room for {room} images, not {job.left}", seconds)
        if not ahead:
            return
        work = job.lane.work(self._running, job)
        if job.lane is background:
            work += foreground.work(self._running)
        late = job.arrived + cost.seconds(work, self._max_batch) - job.deadline
        if late > 0:
            raise _unavailable("the queue is too long for the time limit", late)

    def _work(self) -> None:
        while places := self._take():
            self._try(places)
            self._return(places)

    def _take(self) -> _Line[AnyCase]:
        """Wait for the next step's images; there are none when there will be none any more."""
        with self._changed:
            while not (places := self._first()) and not self._closing:
                self._idle = True
                self._changed.wait()
                self._idle = False
            return places

    def _first(self) -> _Line[AnyCase]:
        """The first images in order, of one stage; the unwanted on the way to them are dropped."""
        now = self._clock()
        places: _Line[AnyCase] = []
        late: _Answers[AnyCase] = []
        for lane in self._lanes:
            while len(places) < self._max_batch:
                if not places:
                    self._running = lane.stage(now, self._max_batch)
                if not (place := lane.pop(self._running)):
                    break
                job, _ = place
                if job.wanted(now):
                    job.started = min(job.started, now)
                    places.append(place)
                else:
                    lane.drop(job)
                    late.append((job, DeadlineError(_TOO_LATE)))
        _post(late)
        return places

    def _try(self, places: _Line[AnyCase]) -> None:
        """Take images a step further; should that raise, each job alone, then each image."""
        stage, began = places[0][1].stage, self._clock()
        parts: list[_Line[AnyCase]] = []
        try:
            self._step([case for _, case in places])
        except Exception as error:
            jobs = {job: [each for each in places if each[0] is job] for job, _ in places}
            parts = list(jobs.values()) if len(jobs) > 1 else [[place] for place in places]
            if len(places) == 1:
                self._fail(*parts.pop()[0], error)
            else:
                log.warning("a step failed, its %d parts are tried alone: %r", len(parts), error)
        else:
            step = Step(len(places), stage, self._clock() - began)
            with self._changed:
                self._cost.count_step(step.stage, step.images, step.seconds)
            self._observe(step)
        for part in parts:
            if part[0][0].wanted(self._clock()):
                self._try(part)

    def _fail(self, job: _Job[AnyCase], case: AnyCase, error: Exception) -> None:
        number = [each is case for each in job.cases].index(True) + 1
        log.error("image %d of %d failed", number, len(job.cases), exc_info=error)
        with self._changed:
            job.lane.drop(job)
        _post([(job, InferenceError("the model failed on this input"))])

    def _return(self, places: _Line[AnyCase]) -> None:
        """After a step: queue the images that need another, answer the jobs that are settled."""
        now = self._clock()
        answers: _Answers[AnyCase] = []
        with self._changed:
            for job, case in places:
                if job.left and not case.settled:
                    job.lane.put_back(job, case)
                elif job.left:
                    self._cost.count_settled(case.stage)
                    job.lane.images -= 1
                    job.left -= 1
                    if not job.left:
                        times = Times(job.started - job.arrived, now - job.started)
                        answers.append((job, times))
        _post(answers)


def _unavailable(detail: str, seconds: float = 0.0) -> UnavailableError:
    return UnavailableError(detail, retry_after=max(1, math.ceil(seconds)))


def _expire(job: _Job[AnyCase]) -> None:
    _answer([(job, DeadlineError(_TOO_LATE))])


def _post(answers: _Answers[AnyCase]) -> None:
    """Hand answers over to the event loop, all at once."""
    if not answers:
        return
    try:
        answers[0][0].future.get_loop().call_soon_threadsafe(_answer, answers)
    except RuntimeError:  # the loop is closed: no one waits any more
        log.debug("answers came after the event loop was closed")


def _answer(answers: _Answers[AnyCase]) -> None:
    for job, answer in answers:
        if job.future.done():
            continue
        if isinstance(answer, GateError):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)
