"""Which images are computed next: a bounded queue, and micro-batches without waiting.

One worker thread infers. Whatever has gathered while it was busy becomes its next batch, in order
of arrival and up to `max_batch` images; a larger request is split over batches and rejoined. An
idle worker never waits for company. A request that was cancelled or is past its deadline is
dropped before it costs anything.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from service.errors import DeadlineError, GateError, InferenceError, UnavailableError
from service.evidence import Floats

Row = TypeVar("Row")
Clock = Callable[[], float]

log = logging.getLogger("service.scheduler")


@dataclass(frozen=True)
class Batch:
    """One inference step, for the metrics: images in it, seconds that it took."""

    images: int
    seconds: float


@dataclass(frozen=True)
class Outcome(Generic[Row]):
    """One request's rows in its own order, and where its time went, in seconds."""

    rows: list[Row]
    queue_seconds: float
    infer_seconds: float


@dataclass(eq=False)
class _Job(Generic[Row]):
    images: Floats
    deadline: float
    arrived: float
    future: asyncio.Future[Outcome[Row]]
    loop: asyncio.AbstractEventLoop
    taken: int = 0
    started: float = math.nan
    infer_seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """Images that no batch has taken yet."""
        return len(self.images) - self.taken


_Settled = tuple[_Job[Row], Outcome[Row] | GateError]


class Scheduler(Generic[Row]):
    """Admits requests on the event loop, infers in a thread of its own."""

    def __init__(
        self,
        infer: Callable[[Floats], Sequence[Row]],
        *,
        max_batch: int,
        max_queue: int,
        clock: Clock = time.monotonic,
        observe: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        """Start the worker.

        Args:
            infer: images [B, C, H, W] → B rows; called in the worker thread only.
            max_batch: images in one call of `infer`.
            max_queue: images that may wait.
            clock: seconds, monotonic.
            observe: told of every batch, in the worker thread.
        """
        self._infer = infer
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._clock = clock
        self._observe = observe
        self._jobs: deque[_Job[Row]] = deque()
        self._queued = 0
        self._seconds_per_image = 0.0
        self._closing = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="inference", daemon=True)
        self._worker.start()

    @property
    def queued(self) -> int:
        """Images that wait."""
        return self._queued

    @property
    def alive(self) -> bool:
        """Whether the worker runs and takes requests."""
        return self._worker.is_alive() and not self._closing

    async def submit(self, images: Floats, deadline: float) -> Outcome[Row]:
        """Have images [n, C, H, W] inferred before `deadline`, a time of the clock.

        Raises:
            UnavailableError: the queue is full, or the scheduler is closing.
            DeadlineError: it passed before the answer was there.
            InferenceError: `infer` raised, for this request alone too.
        """
        loop = asyncio.get_running_loop()
        now = self._clock()
        if now >= deadline:
            raise _too_late()
        job: _Job[Row] = _Job(images, deadline, now, loop.create_future(), loop)
        with self._changed:
            if self._closing:
                raise UnavailableError("the service is stopping", retry_after=1)
            if self._queued + len(images) > self._max_queue:
                raise UnavailableError(
                    f"{self._queued} images wait already; the limit is {self._max_queue}",
                    retry_after=self._seconds_to_drain(),
                )
            self._jobs.append(job)
            self._queued += len(images)
            self._changed.notify()
        late: list[_Settled[Row]] = [(job, _too_late())]
        timer = loop.call_later(deadline - now, _settle, late)
        try:
            return await job.future
        finally:
            timer.cancel()
            self._forget(job)

    async def close(self, seconds: float) -> None:
        """Take nothing more, finish what waits within `seconds`, fail the rest and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._worker.join, seconds)
        with self._changed:
            abandoned = list(self._jobs)
            self._jobs.clear()
            self._queued = 0
        _settle(
            [(job, UnavailableError("the service is stopping", retry_after=1)) for job in abandoned]
        )

    def _seconds_to_drain(self) -> int:
        return max(1, math.ceil(self._queued * self._seconds_per_image))

    def _forget(self, job: _Job[Row]) -> None:
        """Give back the places in the queue of a job that no one waits for."""
        with self._changed:
            if job.waiting and job in self._jobs:
                self._jobs.remove(job)
                self._queued -= job.waiting

    def _work(self) -> None:
        while parts := self._take():
            self._run(parts)

    def _take(self) -> list[tuple[_Job[Row], Floats]]:
        """The next batch, as each job's share of it; empty when there will be none any more."""
        with self._changed:
            while True:
                parts: list[tuple[_Job[Row], Floats]] = []
                room, now = self._max_batch, self._clock()
                while self._jobs and room:
                    job = self._jobs[0]
                    if job.future.done() or now >= job.deadline:
                        self._queued -= job.waiting
                        self._jobs.popleft()
                        self._post([(job, _too_late())])
                        continue
                    count = min(room, job.waiting)
                    if not job.taken:
                        job.started = now
                    parts.append((job, job.images[job.taken : job.taken + count]))
                    job.taken += count
                    room -= count
                    self._queued -= count
                    if not job.waiting:
                        self._jobs.popleft()
                if parts or self._closing:
                    return parts
                self._changed.wait()

    def _run(self, parts: list[tuple[_Job[Row], Floats]]) -> None:
        """Infer a batch; should that raise, each request of it by itself, once."""
        try:
            self._post(self._answer(parts))
        except Exception as error:
            if len(parts) == 1:
                self._fail(parts[0][0], error)
                return
            log.warning("a batch of %d requests failed, each is tried alone: %r", len(parts), error)
            for part in parts:
                try:
                    self._post(self._answer([part]))
                except Exception as alone:
                    self._fail(part[0], alone)

    def _answer(self, parts: list[tuple[_Job[Row], Floats]]) -> list[_Settled[Row]]:
        """Infer a batch; returns the jobs that it completes."""
        images = parts[0][1] if len(parts) == 1 else np.concatenate([part for _, part in parts])
        began = self._clock()
        rows = self._infer(images)
        seconds = self._clock() - began
        if len(rows) != len(images):
            raise RuntimeError(f"{len(images)} images gave {len(rows)} rows")
        self._seconds_per_image += 0.1 * (seconds / len(images) - self._seconds_per_image)
        self._observe(Batch(len(images), seconds))
        completed: list[_Settled[Row]] = []
        first = 0
        for job, part in parts:
            job.rows.extend(rows[first : first + len(part)])
            job.infer_seconds += seconds
            first += len(part)
            if len(job.rows) == len(job.images):
                outcome = Outcome(job.rows, job.started - job.arrived, job.infer_seconds)
                completed.append((job, outcome))
        return completed

    def _fail(self, job: _Job[Row], error: Exception) -> None:
        log.error("inference failed", exc_info=error)
        self._forget(job)
        self._post([(job, InferenceError("the model failed on this input"))])

    def _post(self, settled: list[_Settled[Row]]) -> None:
        """Hand results over to the event loop, all at once."""
        if not settled:
            return
        try:
            settled[0][0].loop.call_soon_threadsafe(_settle, settled)
        except RuntimeError:  # the loop is closed: no one waits any more
            log.debug("answers came after the event loop was closed")


def _too_late() -> DeadlineError:
    return DeadlineError("no answer within the time limit")


def _settle(settled: list[_Settled[Row]]) -> None:
    for job, result in settled:
        if job.future.done():
            continue
        if isinstance(result, GateError):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
