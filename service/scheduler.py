"""Which images take the next step: a bounded queue, in a fair order, and steps without waiting.

A step has up to `max_batch` images that have had the same steps before; it takes what waits, and
never waits for company. Whoever is settled leaves, the others wait for their next step among the
newcomers. The order:

1. foreground before background;
2. those under way before new images, the latest stage first: an answer that was begun is finished
   before another is begun. But where new images alone fill a step, there is more to do than can be
   done soon, and small steps, which cost nearly as much as large ones, would make it more: then it
   is the stage whose images, as many as a step has room for, have waited longest in all since they
   arrived, and of equals the latest. Of one stage, those that came to it first;
3. new images by turns, one of each client a turn (`service.lanes`);
4. of one client, the earlier deadline first, then the earlier arrival.

The first in order leads a step, and the next of its stage fill it up. What was cancelled or is past
its deadline is dropped before it costs any more; what would be late is refused at the door.

All is decided on one event loop. Short steps are taken there as well, and between two of them the
loop turns a few times, so that whoever comes is let in, read, and refused if need be, before the
next: a thread would struggle with the loop for the interpreter, and each would keep the other
waiting. Long steps, as a large network's are, are taken in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic

from service.cost import Cost
from service.errors import DeadlineError, GateError, InferenceError, UnavailableError
from service.lanes import Answer, AnyCase, Job, Lane, Line, Times

Clock = Callable[[], float]

# The event loop is kept busy no longer than this by one step, on average.
ON_LOOP_SECONDS = 0.1

# Of the event loop between two steps. One for each would let a new connection wait for four of them
# until it is accepted, set up, read and answered.
TURNS = 3

# A step that takes longer than this, or never ends, is a fault.
STUCK_SECONDS = 60.0

_TOO_LATE = "no answer within the time limit"

log = logging.getLogger("service.scheduler")

_Answers = list[tuple[Job[AnyCase], Times | GateError]]


@dataclass(frozen=True)
class Step:
    """One step: its images, the steps that they had had before, and the seconds it took."""

    images: int
    stage: int
    seconds: float


@dataclass(frozen=True)
class _Failure(Generic[AnyCase]):
    job: Job[AnyCase]
    case: AnyCase
    error: Exception


class Scheduler(Generic[AnyCase]):
    """Admits requests on one event loop, and takes their images through the members."""

    def __init__(
        self,
        step: Callable[[Sequence[AnyCase]], None],
        *,
        max_batch: int,
        max_queue: int,
        clock: Clock = time.monotonic,
        observe: Callable[[Step], None] = lambda step: None,
        on_loop_seconds: float = ON_LOOP_SECONDS,
    ) -> None:
        """Have nothing to do yet.

        Args:
            step: takes 1 to `max_batch` unsettled cases of one stage to the next, all of them or,
                if it raises, none; never called twice at a time.
            max_batch: images in one step.
            max_queue: unsettled images of all requests; those of the background may be half of it.
            clock: seconds, monotonic.
            observe: told of every step.
            on_loop_seconds: steps that take less than this on average are taken on the event loop.
        """
        self._step, self._observe, self._clock = step, observe, clock
        self._max_batch, self._max_queue = max_batch, max_queue
        self._on_loop_seconds = on_loop_seconds
        self._cost = Cost()
        self._lanes: tuple[Lane[AnyCase], Lane[AnyCase]] = Lane(), Lane()
        self._jobs: set[Job[AnyCase]] = set()  # neither answered nor taken back
        self._running = 0  # stage of the step
        self._stepping = self._closing = False
        self._moved = 0.0
        self._done = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "inference")
        self._timer: asyncio.TimerHandle | None = None
        self._timer_deadline = math.inf

    @property
    def queued(self) -> int:
        """Images that wait, be it for their first step or another."""
        return sum(lane.waiting for lane in self._lanes)

    @property
    def alive(self) -> bool:
        """Whether it takes requests, and does something about them."""
        stuck = self._stepping and self._clock() - self._moved > STUCK_SECONDS
        return not (self._closing or stuck)

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
        if not cases:
            return Times(0.0, 0.0)
        future: asyncio.Future[Times] = asyncio.get_running_loop().create_future()
        answer = partial(_resolve, future)
        job = self.enter(cases, deadline, answer, client=client, background=background)
        try:
            return await future
        finally:
            self.take_back(job)

    def enter(
        self,
        cases: Sequence[AnyCase],
        deadline: float,
        answer: Answer,
        *,
        client: str = "",
        background: bool = False,
    ) -> Job[AnyCase]:
        """As `submit`, of at least one case, but without waiting.

        `answer` is called with the times, or with what went wrong, in a later turn of the event
        loop; once, unless the job is taken back before.

        Raises:
            UnavailableError: as above.
            DeadlineError: it has passed already.
        """
        now = self._clock()
        if now >= deadline:
            raise DeadlineError(_TOO_LATE)
        job = Job(cases, client, self._lanes[background], now, deadline, answer, len(cases))
        self._check(job)
        job.lane.add(job)
        self._jobs.add(job)
        self._watch(deadline)
        if not self._stepping:
            self._stepping, self._moved = True, now
            asyncio.get_running_loop().call_soon(self._take)
        return job

    def take_back(self, job: Job[AnyCase]) -> None:
        """Do no more for a job, and do not answer it; if it was answered, that is so already."""
        self._jobs.discard(job)
        if job.left:
            job.lane.drop(job)
        if self._closing and not self._jobs:
            self._done.set()

    async def close(self, seconds: float) -> None:
        """Take nothing more, finish what was taken within `seconds`, and fail the rest."""
        self._closing = True
        if self._jobs:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._done.wait(), seconds)
        self._answer([(job, _unavailable("the service is stopping")) for job in self._jobs])
        self._thread.shutdown(wait=False)
        if self._timer is not None:
            self._timer.cancel()

    def _check(self, job: Job[AnyCase]) -> None:
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
        most = [(0, ahead + job.left)]
        if not ahead or job.arrived + cost.seconds(most, self._max_batch) <= job.deadline:
            return
        work = job.lane.work(self._running, job)
        if job.lane is background:
            work += foreground.work(self._running)
        late = job.arrived + cost.seconds(work, self._max_batch) - job.deadline
        if late > 0:
            raise _unavailable("the queue is too long for the time limit", late)

    def _take(self) -> None:
        """Take the next step, if any image waits for one."""
        places = self._first()
        if not places:
            self._stepping = False
            return
        if self._cost.step_seconds < self._on_loop_seconds:
            self._return(places, *self._try(places))
            return
        loop = asyncio.get_running_loop()
        stepped = loop.run_in_executor(self._thread, self._try, places)
        stepped.add_done_callback(lambda done: self._return(places, *done.result()))

    def _first(self) -> Line[AnyCase]:
        """The first images in order, of one stage; the unwanted on the way to them are dropped."""
        self._moved = now = self._clock()
        places: Line[AnyCase] = []
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
        self._answer(late)
        return places

    def _try(self, places: Line[AnyCase]) -> tuple[list[Step], list[_Failure[AnyCase]]]:
        """Take images a step further; should that raise, each job alone, then each image."""
        stage, began = places[0][1].stage, self._clock()
        try:
            self._step([case for _, case in places])
        except Exception as error:
            jobs = {job: [each for each in places if each[0] is job] for job, _ in places}
            if len(places) == 1:
                return [], [_Failure(*places[0], error)]
            parts = list(jobs.values()) if len(jobs) > 1 else [[place] for place in places]
            log.warning("a step failed, its %d parts are tried alone: %r", len(parts), error)
        else:
            return [Step(len(places), stage, self._clock() - began)], []
        steps: list[Step] = []
        failures: list[_Failure[AnyCase]] = []
        for part in parts:
            failed = any(failure.job is part[0][0] for failure in failures)
            if part[0][0].wanted(self._clock()) and not failed:
                more_steps, more_failures = self._try(part)
                steps += more_steps
                failures += more_failures
        return steps, failures

    def _return(
        self, places: Line[AnyCase], steps: Sequence[Step], failures: Sequence[_Failure[AnyCase]]
    ) -> None:
        """After a step: queue the images that need another, answer the jobs that are settled."""
        self._moved = now = self._clock()
        answers: _Answers[AnyCase] = []
        for step in steps:
            self._cost.count_step(step.stage, step.images, step.seconds)
            self._observe(step)
        for failure in failures:
            answers.append((failure.job, _failed(failure)))
            failure.job.lane.drop(failure.job)
        for job, case in places:
            if job.left and not case.settled:
                job.lane.put_back(job, case)
            elif job.left:
                self._cost.count_settled(case.stage)
                job.lane.images -= 1
                job.left -= 1
                if not job.left:
                    answers.append((job, Times(job.started - job.arrived, now - job.started)))
        self._answer(answers)
        self._rest(TURNS)

    def _rest(self, turns: int) -> None:
        """Take the next step after so many turns of the event loop."""
        loop = asyncio.get_running_loop()
        if turns > 1:
            loop.call_soon(self._rest, turns - 1)
        else:
            loop.call_soon(self._take)

    def _answer(self, answers: _Answers[AnyCase]) -> None:
        for job, answer in answers:
            if job not in self._jobs:  # answered, or taken back
                continue
            self.take_back(job)
            try:
                job.answer(answer)
            except Exception:
                log.exception("an answer was lost")

    def _watch(self, deadline: float) -> None:
        """See to it that `_expire` is called at the earliest deadline: one timer does for all."""
        if self._timer is not None:
            if self._timer_deadline <= deadline:
                return
            self._timer.cancel()
        self._timer_deadline = deadline
        seconds = deadline - self._clock()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._timer = None
        late = [job for job in self._jobs if job.deadline <= self._timer_deadline]
        self._answer([(job, DeadlineError(_TOO_LATE)) for job in late])
        if self._jobs:
            self._watch(min(job.deadline for job in self._jobs))


def _failed(failure: _Failure[AnyCase]) -> InferenceError:
    cases = failure.job.cases
    number = [each is failure.case for each in cases].index(True) + 1
    log.error("image %d of %d failed", number, len(cases), exc_info=failure.error)
    return InferenceError("the model failed on this input")


def _unavailable(detail: str, seconds: float = 0.0) -> UnavailableError:
    return UnavailableError(detail, retry_after=max(1, math.ceil(seconds)))


def _resolve(future: asyncio.Future[Times], answer: Times | GateError) -> None:
    if future.done():
        return
    if isinstance(answer, GateError):
        future.set_exception(answer)
    else:
        future.set_result(answer)
