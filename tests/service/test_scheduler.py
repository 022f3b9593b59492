"""The behaviours that other batchers were reported to lack."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from service.errors import DeadlineError, InferenceError, UnavailableError
from service.scheduler import Batch, Scheduler

pytestmark = pytest.mark.anyio

FAR = 1e6


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Engine:
    """Doubles its images; waits before each batch until it is let go; raises on the number 13."""

    def __init__(self, held: bool) -> None:
        self.batches: list[list[float]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.held = held

    def __call__(self, images: np.ndarray) -> list[float]:
        self.batches.append(images.ravel().tolist())
        self.entered.release()
        if self.held:
            assert self.gate.acquire(timeout=20)
        if 13 in images:
            raise ValueError("poison")
        return [2 * value for value in images.ravel().tolist()]

    async def busy(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=20)

    def release(self, batches: int = 1000) -> None:
        self.gate.release(batches)


def pictures(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32).reshape(-1, 1, 1, 1)


@asynccontextmanager
async def running(
    held: bool = True, max_batch: int = 4, max_queue: int = 8, **options: Any
) -> AsyncIterator[tuple[Scheduler[float], Engine]]:
    engine = Engine(held)
    scheduler = Scheduler(engine, max_batch=max_batch, max_queue=max_queue, **options)
    try:
        yield scheduler, engine
    finally:
        engine.release()
        await scheduler.close(20)
        assert not scheduler.alive


async def asking(
    scheduler: Scheduler[float], *values: float, deadline: float = FAR
) -> asyncio.Task[Any]:
    """Submit, and let the request reach the queue."""
    task = asyncio.ensure_future(scheduler.submit(pictures(*values), deadline))
    await asyncio.sleep(0)
    return task


async def rows(task: asyncio.Task[Any]) -> list[float]:
    return (await task).rows


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_an_idle_worker_does_not_wait_for_company(clock):
    async with running(held=False, clock=clock) as (scheduler, engine):
        assert (await scheduler.submit(pictures(1), FAR)).rows == [2]
        assert (await scheduler.submit(pictures(2), FAR)).rows == [4]
        assert engine.batches == [[1], [2]]


async def test_requests_gather_while_the_worker_is_busy(clock):
    async with running(clock=clock) as (scheduler, engine):
        first = await asking(scheduler, 1)
        await engine.busy()
        others = [await asking(scheduler, value) for value in (2, 3, 4, 5, 6)]
        assert scheduler.queued == 5
        engine.release()
        assert await rows(first) == [2]
        assert [await rows(other) for other in others] == [[4], [6], [8], [10], [12]]
        assert engine.batches == [[1], [2, 3, 4, 5], [6]]
        assert scheduler.queued == 0


async def test_a_large_request_is_split_and_rejoined_in_order(clock):
    batches: list[Batch] = []
    options = {"clock": clock, "max_queue": 32, "observe": batches.append}
    async with running(**options) as (scheduler, engine):
        small = await asking(scheduler, 100)
        await engine.busy()
        large = await asking(scheduler, *range(20, 30))
        last = await asking(scheduler, 101, 102, 103)
        engine.release()
        assert await rows(large) == [2 * value for value in range(20, 30)]
        assert await rows(small) == [200]
        assert await rows(last) == [202, 204, 206]
        assert [len(batch) for batch in engine.batches] == [1, 4, 4, 4, 1]
        assert [batch.images for batch in batches] == [1, 4, 4, 4, 1]


async def test_the_queue_is_bounded_in_images(clock):
    async with running(clock=clock, max_queue=5) as (scheduler, engine):
        first = await asking(scheduler, 1)
        await engine.busy()
        waiting = await asking(scheduler, 2, 3, 4)
        with pytest.raises(UnavailableError) as refused:
            await scheduler.submit(pictures(5, 6, 7), FAR)
        assert refused.value.retry_after >= 1
        fits = await asking(scheduler, 5, 6)
        with pytest.raises(UnavailableError):
            await scheduler.submit(pictures(7), FAR)
        engine.release()
        assert [await rows(task) for task in (first, waiting, fits)] == [[2], [4, 6, 8], [10, 12]]


async def test_retry_after_grows_with_the_queue(clock):
    async with running(clock=clock, max_batch=100, max_queue=100) as (scheduler, engine):
        slow = await asking(scheduler, 1)
        await engine.busy()
        clock.now = 50.0
        engine.release(1)
        await slow
        busy = await asking(scheduler, 1)
        await engine.busy()
        await asking(scheduler, *range(14, 94))
        with pytest.raises(UnavailableError) as refused:
            await scheduler.submit(pictures(*range(14, 94)), FAR)
        assert refused.value.retry_after == 80 * 5
        engine.release()
        await busy


async def test_nothing_is_computed_for_an_expired_request(clock):
    async with running(clock=clock) as (scheduler, engine):
        first = await asking(scheduler, 1)
        await engine.busy()
        late = await asking(scheduler, 2, deadline=5.0)
        timely = await asking(scheduler, 3, deadline=15.0)
        clock.now = 10.0
        engine.release()
        with pytest.raises(DeadlineError):
            await late
        assert await rows(first) == [2]
        assert await rows(timely) == [6]
        assert engine.batches == [[1], [3]]
        with pytest.raises(DeadlineError):
            await scheduler.submit(pictures(4), 10.0)


async def test_the_deadline_is_kept_while_the_worker_is_busy():
    async with running() as (scheduler, engine):
        first = await asking(scheduler, 1)
        await engine.busy()
        soon = scheduler._clock() + 0.01
        with pytest.raises(DeadlineError):
            await scheduler.submit(pictures(2), soon)
        assert scheduler.queued == 0, "its place in the queue is free again"
        engine.release()
        assert await rows(first) == [2]
        assert engine.batches == [[1]]


async def test_cancelled_requests_leave_the_queue_and_disturb_no_one(clock):
    async with running(clock=clock) as (scheduler, engine):
        during = await asking(scheduler, 1)
        await engine.busy()
        before = await asking(scheduler, 2, 3)
        neighbour = await asking(scheduler, 4)
        during.cancel()
        before.cancel()
        await asyncio.sleep(0)
        assert scheduler.queued == 1
        engine.release()
        assert await rows(neighbour) == [8]
        assert engine.batches == [[1], [4]]
        assert during.cancelled()
        assert before.cancelled()
        done = await asking(scheduler, 5)
        assert await rows(done) == [10]
        done.cancel()
        assert (await scheduler.submit(pictures(6), FAR)).rows == [12]


async def test_the_rest_of_a_split_request_is_dropped_when_it_is_cancelled(clock):
    async with running(clock=clock, max_batch=2) as (scheduler, engine):
        split = await asking(scheduler, 1, 2, 3, 4, 5)
        await engine.busy()
        other = await asking(scheduler, 6)
        split.cancel()
        await asyncio.sleep(0)
        engine.release()
        assert await rows(other) == [12]
        assert engine.batches == [[1, 2], [6]]


async def test_a_poison_input_hits_only_itself(clock):
    async with running(clock=clock) as (scheduler, engine):
        first = await asking(scheduler, 1)
        await engine.busy()
        good, bad, fine = [await asking(scheduler, value) for value in (2, 13, 3)]
        engine.release()
        assert await rows(good) == [4]
        assert await rows(fine) == [6]
        with pytest.raises(InferenceError) as failure:
            await bad
        assert "poison" not in failure.value.detail
        assert await rows(first) == [2]
        assert engine.batches == [[1], [2, 13, 3], [2], [13], [3]]


async def test_a_poisoned_split_request_gives_up_its_rest(clock):
    async with running(clock=clock, max_batch=2) as (scheduler, engine):
        bad = await asking(scheduler, 13, 1, 2, 3)
        await engine.busy()
        other = await asking(scheduler, 4)
        engine.release()
        with pytest.raises(InferenceError):
            await bad
        assert await rows(other) == [8]
        assert engine.batches == [[13, 1], [4]]


async def test_rows_that_do_not_match_the_images_are_a_failure():
    scheduler = Scheduler(lambda images: [1.0, 2.0], max_batch=4, max_queue=4)
    with pytest.raises(InferenceError):
        await scheduler.submit(pictures(1), scheduler._clock() + FAR)
    await scheduler.close(20)


async def test_where_the_time_went(clock):
    async with running(clock=clock) as (scheduler, engine):
        first = await asking(scheduler, 1)
        await engine.busy()
        clock.now = 1.0
        second = await asking(scheduler, 2)
        clock.now = 3.0
        engine.release(1)
        outcome = await first
        assert (outcome.queue_seconds, outcome.infer_seconds) == (0.0, 3.0)
        await engine.busy()
        clock.now = 7.0
        engine.release(1)
        outcome = await second
        assert (outcome.queue_seconds, outcome.infer_seconds) == (2.0, 4.0)


async def test_closing_finishes_what_was_admitted(clock):
    async with running(clock=clock) as (scheduler, engine):
        admitted = [await asking(scheduler, value) for value in (1, 2, 3)]
        await engine.busy()
        closing = asyncio.ensure_future(scheduler.close(20))
        await asyncio.sleep(0)
        assert not scheduler.alive
        with pytest.raises(UnavailableError, match="stopping"):
            await scheduler.submit(pictures(4), FAR)
        engine.release()
        await closing
        assert [await rows(task) for task in admitted] == [[2], [4], [6]]


async def test_closing_does_not_wait_for_ever(clock):
    async with running(clock=clock, max_batch=1) as (scheduler, engine):
        stuck = await asking(scheduler, 1)
        await engine.busy()
        waiting = await asking(scheduler, 2)
        await scheduler.close(0.01)
        with pytest.raises(UnavailableError, match="stopping"):
            await waiting
        engine.release()
        assert await rows(stuck) == [2]


async def test_it_serves_on_after_much_abuse():
    rng = np.random.default_rng(11)
    async with running(held=False, max_queue=64) as (scheduler, engine):
        tasks = []
        for number in range(1000):
            values = rng.integers(0, 20, rng.integers(1, 7)).tolist()
            until = scheduler._clock() + (-1.0 if number % 7 == 0 else FAR)
            tasks.append(await asking(scheduler, *values, deadline=until))
            if number % 3 == 0:
                tasks[rng.integers(len(tasks))].cancel()
            if number % 20 == 0:
                await asyncio.sleep(0.001)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert scheduler.queued == 0
        assert (await scheduler.submit(pictures(1, 2), scheduler._clock() + FAR)).rows == [2, 4]
        assert max(map(len, engine.batches)) <= 4


async def test_options_of_one_request_do_not_reach_its_neighbours(
    start: Callable[..., Any], model: Any, with_logits: Any, png: bytes
):
    """Requests with different options, answered from one batch."""
    entered, release = threading.Event(), threading.Event()
    sizes: list[int] = []

    def logits(batch: np.ndarray) -> np.ndarray:
        entered.set()
        assert release.wait(20)
        sizes.append(len(batch))
        return model.runtime.outputs(batch).logits

    queries: list[dict[str, Any]] = [
        {},
        {"policy": "strict"},
        {"alpha": 0.25},
        {"top_k": 1},
        {"explain": True},
    ]
    async with start(with_logits(logits), max_batch_images=8) as client:

        def ask(query: dict[str, Any]) -> asyncio.Task[httpx.Response]:
            headers = {"Content-Type": "image/png"}
            request = client.post("/predict", content=png, headers=headers, params=query)
            return asyncio.ensure_future(request)

        first = ask({})
        assert await asyncio.to_thread(entered.wait, 20)
        tasks = [ask(query) for query in queries]
        await client.until_queued(5)
        release.set()
        answers = [(await task).json() for task in tasks]
        await first
    assert sizes == [1, 5]
    assert [answer["policy"] for answer in answers] == ["default", "strict", *["default"] * 3]
    alphas = [answer["results"][0]["ood"]["alpha"] for answer in answers]
    assert alphas == [0.05, 0.5, 0.25, 0.05, 0.05]
    shown = [len(answer["results"][0]["probabilities"]) for answer in answers]
    assert shown == [3, 3, 3, 1, 3]
    assert ["members" in answer["results"][0] for answer in answers] == [*[False] * 4, True]
