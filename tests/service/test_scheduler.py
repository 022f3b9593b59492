"""The behaviours that other batchers were reported to lack, and the order of the steps."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from service.errors import DeadlineError, InferenceError, UnavailableError
from service.lanes import Times
from service.scheduler import STUCK_SECONDS, TURNS, Scheduler, Step

FAR = 1e6
LIMIT = 20.0
POISON = 13


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class Picture:
    """A case that is settled after `needs` steps, and remembers what was done to it."""

    value: int
    needs: int = 1
    option: str = ""
    poisoned_at: int = 0
    seen: list[int] = field(default_factory=list)
    answer: int = 0

    @property
    def stage(self) -> int:
        return len(self.seen)

    @property
    def settled(self) -> bool:
        return len(self.seen) >= self.needs

    def advance(self, stage: int) -> None:
        self.seen.append(stage)
        self.answer = hash((self.answer, self.value, self.option, stage))


class Engine:
    """Records its steps, waits in each until it is let go, and raises on poison."""

    def __init__(self, clock: Clock, held: bool, cost: tuple[float, float]) -> None:
        self.clock, self.held, self.cost = clock, held, cost
        self.steps: list[tuple[int, list[int]]] = []
        self.threads: list[str] = []
        self.failures = 0
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def __call__(self, cases: Sequence[Picture]) -> None:
        stage = cases[0].stage
        self.steps.append((stage, [case.value for case in cases]))
        self.threads.append(threading.current_thread().name)
        assert all(case.stage == stage and not case.settled for case in cases)
        self.entered.release()
        if self.held:
            assert self.gate.acquire(timeout=LIMIT)
        self.clock.now += self.cost[0] * len(cases) + self.cost[1]
        if self.failures:
            self.failures -= 1
            raise RuntimeError("a fault that goes away")
        if any(case.value == POISON and case.poisoned_at == stage for case in cases):
            raise ValueError("poison")
        for case in cases:
            case.advance(stage)

    async def busy(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=LIMIT)

    def release(self, steps: int = 100_000) -> None:
        self.gate.release(steps)

    @property
    def sizes(self) -> list[int]:
        return [len(values) for _, values in self.steps]


Running = tuple[Scheduler[Picture], Engine]


@asynccontextmanager
async def running(
    clock: Clock | None = None,
    held: bool = True,
    cost: tuple[float, float] = (0.0, 0.0),
    max_batch: int = 4,
    max_queue: int = 64,
    **options: Any,
) -> AsyncIterator[Running]:
    clock = clock or Clock()
    engine = Engine(clock, held, cost)
    limits: dict[str, Any] = {"max_batch": max_batch, "max_queue": max_queue}
    options.setdefault("on_loop_seconds", 0.0)
    scheduler: Scheduler[Picture] = Scheduler(engine, clock=clock, **limits, **options)
    try:
        async with asyncio.timeout(LIMIT):
            yield scheduler, engine
    finally:
        engine.release()
        await scheduler.close(LIMIT)
        assert not scheduler.alive


def pictures(*values: int, needs: int = 1, **options: Any) -> list[Picture]:
    return [Picture(value, needs, **options) for value in values]


async def asking(
    scheduler: Scheduler[Picture], cases: Sequence[Picture], deadline: float = FAR, **options: Any
) -> asyncio.Task[Times]:
    """Submit, and let the request reach the queue."""
    task = asyncio.ensure_future(scheduler.submit(cases, deadline, **options))
    await asyncio.sleep(0)
    return task


async def under_way(running: Running, *values: int, **options: Any) -> asyncio.Task[Times]:
    """Submit one-step pictures, and wait until the engine has them."""
    task = await asking(running[0], pictures(*values), **options)
    await running[1].busy()
    return task


@pytest.fixture
def clock() -> Clock:
    return Clock()


pytestmark = pytest.mark.anyio


async def test_an_idle_worker_does_not_wait_for_company() -> None:
    async with running(held=False) as (scheduler, engine):
        await scheduler.submit(pictures(1), FAR)
        await scheduler.submit(pictures(2), FAR)
        assert engine.steps == [(0, [1]), (0, [2])]


async def test_requests_gather_while_the_worker_is_busy() -> None:
    async with running() as (scheduler, engine):
        tasks = [await under_way((scheduler, engine), 1)]
        tasks += [await asking(scheduler, pictures(value)) for value in (2, 3, 4, 5, 6)]
        assert scheduler.queued == 5
        engine.release()
        await asyncio.gather(*tasks)
        assert engine.steps == [(0, [1]), (0, [2, 3, 4, 5]), (0, [6])]
        assert scheduler.queued == 0


async def test_where_newcomers_fill_a_step_those_who_waited_longest_in_all_go_first(
    clock: Clock,
) -> None:
    """Two that came at 0 have waited 2 s in all at 1, six of 0.5 s have waited 3 s."""
    async with running(clock, max_batch=6) as (scheduler, engine):
        first = await asking(scheduler, [Picture(1, 3), Picture(2, 1), Picture(3, 2)])
        await engine.busy()
        clock.now = 0.5
        others = await asking(scheduler, pictures(*range(4, 10), needs=2))
        clock.now = 1.0
        engine.release(1)
        await engine.busy()
        assert scheduler.queued == 2
        clock.now = 10.0
        engine.release(1)
        await engine.busy()
        engine.release()
        await asyncio.gather(first, others)
        new = [4, 5, 6, 7, 8, 9]
        assert engine.steps[:2] == [(0, [1, 2, 3]), (0, new)]
        assert engine.steps[2:] == [(1, [1, 3, 4, 5, 6, 7]), (2, [1]), (1, [8, 9])]


async def test_those_under_way_go_before_newcomers_that_do_not_fill_a_step(clock: Clock) -> None:
    """The latest first, though the newcomers have waited longer in all."""
    async with running(clock, max_batch=4) as (scheduler, engine):
        tasks = [await asking(scheduler, [Picture(1, 3), Picture(2, 2)])]
        await engine.busy()
        tasks.append(await asking(scheduler, pictures(3, 4, 5, needs=2)))
        clock.now = 9.0
        engine.release()
        await asyncio.gather(*tasks)
        under_way = [(1, [1, 2]), (2, [1])]
        assert engine.steps == [(0, [1, 2]), *under_way, (0, [3, 4, 5]), (1, [3, 4, 5])]


async def test_of_those_who_waited_alike_the_latest_go_first() -> None:
    async with running() as (scheduler, engine):
        first = await asking(scheduler, pictures(1, needs=2))
        await engine.busy()
        other = await asking(scheduler, pictures(2, needs=2))
        engine.release()
        await asyncio.gather(first, other)
        assert engine.steps == [(0, [1]), (1, [1]), (0, [2]), (1, [2])]


async def test_only_as_many_as_a_step_has_room_for_count(clock: Clock) -> None:
    """Of 30 that have waited for 1 s each, two take a step: 2 s in all, and 1 has waited 3 s."""
    async with running(clock, max_batch=2) as (scheduler, engine):
        slow = await asking(scheduler, pictures(1, needs=2))
        await engine.busy()
        clock.now = 2.0
        crowd = await asking(scheduler, pictures(*range(20, 50)))
        clock.now = 3.0
        engine.release()
        await asyncio.gather(slow, crowd)
        assert engine.steps[:3] == [(0, [1]), (1, [1]), (0, [20, 21])]


async def test_no_stage_waits_for_ever(clock: Clock) -> None:
    """Newcomers fill every step of 1 s, and the one image at stage 1 is passed over once."""
    async with running(clock, cost=(0.0, 1.0), max_batch=2) as (scheduler, engine):
        tasks = [await asking(scheduler, pictures(1, needs=2))]
        await engine.busy()
        for value in range(20, 40, 2):
            tasks.append(await asking(scheduler, pictures(value, value + 1)))
            engine.release(1)
            await engine.busy()
        engine.release()
        await asyncio.gather(*tasks)
        assert engine.steps[:4] == [(0, [1]), (0, [20, 21]), (1, [1]), (0, [22, 23])]


async def test_those_between_steps_are_queued() -> None:
    async with running(max_batch=2) as (scheduler, engine):
        task = await asking(scheduler, pictures(1, 2, 3, 4, 5, needs=2))
        queued = []
        for _ in range(6):
            await engine.busy()
            queued.append(scheduler.queued)
            engine.release(1)
        await task
        assert queued == [3, 3, 1, 1, 0, 0]


async def test_no_images_take_no_time() -> None:
    async with running() as (scheduler, engine):
        assert await scheduler.submit([], FAR) == Times(0.0, 0.0)
        assert engine.steps == []


async def test_capacity_is_in_images_and_a_large_request_is_split() -> None:
    steps: list[Step] = []
    async with running(observe=steps.append, max_queue=80) as (scheduler, engine):
        small = await under_way((scheduler, engine), 100)
        cases = pictures(*range(200, 264), needs=2)
        large = await asking(scheduler, cases)
        last = await asking(scheduler, pictures(101, 102, 103))
        engine.release()
        await asyncio.gather(small, large, last)
        assert max(engine.sizes) == 4
        begun = [value for stage, values in engine.steps if stage == 0 for value in values]
        assert begun == [100, *range(200, 264), 101, 102, 103]
        assert all(case.seen == [0, 1] for case in cases)
        assert [(step.stage, step.images) for step in steps] == [
            (stage, len(values)) for stage, values in engine.steps
        ]


async def test_the_queue_is_bounded_in_images() -> None:
    async with running(max_queue=6) as (scheduler, engine):
        tasks = [await under_way((scheduler, engine), 1)]
        tasks += [await asking(scheduler, pictures(2, 3, 4))]
        with pytest.raises(UnavailableError, match="room for 2") as refused:
            await scheduler.submit(pictures(5, 6, 7), FAR)
        assert refused.value.retry_after == 1
        tasks += [await asking(scheduler, pictures(5, 6))]
        with pytest.raises(UnavailableError):
            await scheduler.submit(pictures(7), FAR)
        engine.release()
        await asyncio.gather(*tasks)
        await scheduler.submit(pictures(1, 2, 3, 4, 5, 6), FAR)


async def test_the_background_has_half_of_the_queue() -> None:
    async with running(max_queue=9) as (scheduler, engine):
        tasks = [await under_way((scheduler, engine), 1, 2, background=True)]
        with pytest.raises(UnavailableError):
            await scheduler.submit(pictures(3, 4, 5), FAR, background=True)
        tasks += [await asking(scheduler, pictures(3, 4), background=True)]
        tasks += [await asking(scheduler, pictures(5, 6, 7, 8, 9))]
        with pytest.raises(UnavailableError):
            await scheduler.submit(pictures(10), FAR)
        engine.release()
        await asyncio.gather(*tasks)


async def test_background_fills_what_the_foreground_leaves() -> None:
    async with running() as (scheduler, engine):
        tasks = [await under_way((scheduler, engine), 0)]
        tasks += [await asking(scheduler, pictures(*range(20, 26), needs=2), background=True)]
        tasks += [await asking(scheduler, pictures(1, 2, 3, needs=2))]
        engine.release()
        await asyncio.gather(*tasks)
        assert engine.steps[1:] == [
            (0, [1, 2, 3, 20]),
            (1, [1, 2, 3, 20]),
            (0, [21, 22, 23, 24]),
            (1, [21, 22, 23, 24]),
            (0, [25]),
            (1, [25]),
        ]


async def test_in_the_background_too_those_under_way_go_first(clock: Clock) -> None:
    """20 began earlier than the others, as it rode along with the foreground."""
    async with running(clock) as (scheduler, engine):
        tasks = [await under_way((scheduler, engine), 0)]
        tasks += [await asking(scheduler, pictures(1, 2, 3, needs=2))]
        tasks += [await asking(scheduler, pictures(20, needs=4), background=True)]
        tasks += [await asking(scheduler, pictures(21, 22, 23, needs=2), background=True)]
        clock.now = 1.0
        for _ in range(2):
            engine.release(1)
            await engine.busy()
        tasks += [await asking(scheduler, pictures(4))]
        clock.now = 1.5
        engine.release()
        await asyncio.gather(*tasks)
        assert engine.steps[1:4] == [(0, [1, 2, 3, 20]), (1, [1, 2, 3, 20]), (0, [4, 21, 22, 23])]
        assert engine.steps[4:] == [(2, [20]), (3, [20]), (1, [21, 22, 23])]


@pytest.mark.parametrize("size", [1, 10, 1000], ids="requests of {}".format)
async def test_a_client_with_1000_images_does_not_hold_up_anothers_one(size: int) -> None:
    async with running(max_queue=2000) as (scheduler, engine):
        crowd = []
        for start in range(1000, 2000, size):
            cases = pictures(*range(start, start + size))
            crowd.append(await asking(scheduler, cases, client="crowd"))
        for _ in range(3):
            await engine.busy()
            engine.release(1)
        await engine.busy()
        before = len(engine.steps)
        single = await asking(scheduler, pictures(1), client="single")
        engine.release(1)
        await engine.busy()
        assert 1 in engine.steps[before][1], "the next step has it"
        engine.release()
        await asyncio.gather(single, *crowd)


async def test_clients_take_turns_image_by_image() -> None:
    async with running(max_batch=6) as (scheduler, engine):
        tasks = [await under_way((scheduler, engine), 0)]
        for name, start, count in (("a", 100, 9), ("b", 200, 5), ("c", 300, 2)):
            for value in range(start, start + count):
                tasks.append(await asking(scheduler, pictures(value), client=name))
        engine.release()
        await asyncio.gather(*tasks)
        assert engine.steps[1:] == [
            (0, [100, 200, 300, 101, 201, 301]),
            (0, [102, 202, 103, 203, 104, 204]),
            (0, [105, 106, 107, 108]),
        ]


async def test_of_one_client_the_earlier_deadline_is_first_then_the_earlier_arrival() -> None:
    async with running(max_batch=10) as (scheduler, engine):
        tasks = [await under_way((scheduler, engine), 0)]
        for value, deadline in ((1, 300.0), (2, 100.0), (3, 200.0), (4, 100.0), (5, 300.0)):
            tasks.append(await asking(scheduler, pictures(value), deadline))
        engine.release()
        await asyncio.gather(*tasks)
        assert engine.steps[1] == (0, [2, 4, 3, 1, 5])


async def test_nothing_is_kept_of_what_is_done() -> None:
    async with running(held=False) as (scheduler, _):
        cases = pictures(*range(20, 70), needs=2)
        kept = [weakref.ref(case) for case in cases]
        for number, case in enumerate(cases):
            await scheduler.submit([case], FAR, client=str(number))
        del cases, case
        await scheduler.submit(pictures(1), FAR)
        gc.collect()
        assert not any(each() for each in kept)
        assert not any(lane._new for lane in scheduler._lanes), "no client is remembered"


async def learnt(clock: Clock, running: Running) -> None:
    """Teach what the engine costs, one second an image and two a step; a case takes three."""
    scheduler, engine = running
    for count in (1, 4):
        await scheduler.submit(pictures(*range(100, 100 + count), needs=3), FAR)
    assert clock.now == 3 * (1 + 2) + 3 * (4 + 2)
    engine.held = True
    while engine.entered.acquire(blocking=False):
        pass


async def foreseen(
    clock: Clock, scheduler: Scheduler[Picture], count: int, patience: float = 0.5, **options: Any
) -> float:
    """Seconds from now to the answer, told by when to come back."""
    with pytest.raises(UnavailableError, match="time limit") as refused:
        await scheduler.submit(pictures(*range(count)), clock.now + patience, **options)
    assert refused.value.retry_after is not None
    return refused.value.retry_after - 0.5 + patience


COSTS: dict[str, Any] = {"held": False, "cost": (1.0, 2.0)}


async def test_what_would_be_late_is_refused_and_what_would_not_is_in_time(clock: Clock) -> None:
    async with running(clock, **COSTS) as (scheduler, engine):
        await learnt(clock, (scheduler, engine))
        began = clock.now
        tasks = [await asking(scheduler, pictures(1, 2, 3, 4, needs=3))]
        await engine.busy()
        tasks += [await asking(scheduler, pictures(*range(20, 28), needs=3), began + 60)]
        batch = 3 * (4 + 2)
        assert await foreseen(clock, scheduler, 4, 70.5) == 4 * batch
        assert await foreseen(clock, scheduler, 5, 70.5) == 5 * 3 * 2 + (16 + 1) * 3
        with pytest.raises(UnavailableError):
            await scheduler.submit(pictures(1, 2, 3, 4), began + 4 * batch - 0.01)
        tasks += [await asking(scheduler, pictures(5, 6, 7, 8, needs=3), began + 4 * batch + 0.01)]
        engine.release()
        await asyncio.gather(*tasks)
        assert clock.now == began + 4 * batch


async def test_only_what_goes_before_counts(clock: Clock) -> None:
    """By deadline, by the turns of clients, and foreground before background."""
    async with running(clock, **COSTS) as (scheduler, engine):
        await learnt(clock, (scheduler, engine))
        tasks = [await asking(scheduler, pictures(1, 2, 3, 4, needs=3), client="a")]
        await engine.busy()
        tasks += [await asking(scheduler, pictures(*range(20, 40), needs=3), client="a")]
        step, case = 3 * 2, 3
        assert await foreseen(clock, scheduler, 4, client="a") == 2 * step + 8 * case
        assert await foreseen(clock, scheduler, 1, client="b") == 2 * step + 6 * case
        assert await foreseen(clock, scheduler, 4, client="b") == 3 * step + 12 * case
        behind: dict[str, Any] = {"client": "b", "background": True}
        assert await foreseen(clock, scheduler, 4, **behind) == 7 * step + 28 * case
        patient: dict[str, Any] = {"client": "c", "background": True}
        tasks += [await asking(scheduler, pictures(*range(50, 60), needs=3), **patient)]
        assert await foreseen(clock, scheduler, 1, client="b") == 2 * step + 6 * case
        assert await foreseen(clock, scheduler, 4, **behind) == 8 * step + 32 * case
        engine.release()
        await asyncio.gather(*tasks)


async def test_what_is_under_way_counts_by_its_rest(clock: Clock) -> None:
    """0 and 20 have had one step; half of the steps so far took new images."""
    async with running(clock, **COSTS) as (scheduler, engine):
        await learnt(clock, (scheduler, engine))
        behind: dict[str, Any] = {"background": True}
        tasks = [await asking(scheduler, pictures(0, needs=3), **behind)]
        await engine.busy()
        assert await foreseen(clock, scheduler, 4, **behind) == 2 * 3 * 2 + 5 * 3
        cancelled = await asking(scheduler, pictures(1, 2, 3, needs=3))
        tasks += [await asking(scheduler, pictures(20, 21, 22, 23, needs=3), **behind)]
        engine.release(1)
        await engine.busy()
        assert engine.steps[-1] == (0, [1, 2, 3, 20])
        cancelled.cancel()
        tasks += [await asking(scheduler, pictures(4, needs=3))]
        engine.release(1)
        await engine.busy()
        assert engine.steps[-1] == (0, [4, 21, 22, 23])
        image_steps = {"in the step": 4 * 3, "under way": 2 * 2, "new": 3}
        steps = 2 / (4 / 8)
        late = await foreseen(clock, scheduler, 1, **behind)
        assert late == sum(image_steps.values()) + 2 * max(steps, 5)
        engine.release()
        await asyncio.gather(*tasks)


async def test_nothing_is_refused_before_anything_was_measured(clock: Clock) -> None:
    async with running(clock, cost=(1.0, 2.0)) as (scheduler, engine):
        first = await under_way((scheduler, engine), 1)
        hopeless = await asking(scheduler, pictures(2), deadline=1.0)
        engine.release()
        await first
        with pytest.raises(DeadlineError):
            await hopeless


async def test_an_idle_scheduler_tries_so_that_a_wrong_estimate_corrects_itself(
    clock: Clock,
) -> None:
    async with running(clock, held=False, cost=(0.0, 50.0)) as (scheduler, engine):
        await scheduler.submit(pictures(1), FAR)
        engine.cost = (0.0, 1.0)
        await scheduler.submit(pictures(2), clock.now + 2)
        assert clock.now == 51


async def test_a_full_queue_tells_when_there_will_be_room(clock: Clock) -> None:
    async with running(clock, **COSTS, max_queue=40) as (scheduler, engine):
        await learnt(clock, (scheduler, engine))
        tasks = [await asking(scheduler, pictures(*range(20, 60), needs=3))]
        await engine.busy()
        with pytest.raises(UnavailableError, match="room for 0") as refused:
            await scheduler.submit(pictures(1, 2, 3, 4, 5), FAR)
        assert refused.value.retry_after == 5 * 3 + 2 * 3 * 2
        engine.release()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize(("ended", "served"), [(99, 5), (100, 4), (120, 3), (199, 0)])
async def test_deadlines_count_from_the_arrival_of_each(
    clock: Clock, ended: int, served: int
) -> None:
    """Five arrive 20 s apart and may take 100 s each: those that are left are one batch."""
    async with running(clock, max_batch=8) as (scheduler, engine):
        first = await under_way((scheduler, engine), 0)
        tasks = []
        for value in range(1, 6):
            tasks.append(await asking(scheduler, pictures(value), clock.now + 100))
            clock.now += 20
        clock.now = float(ended)
        engine.release()
        await first
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        alive = list(range(6 - served, 6))
        assert [type(each) for each in outcomes] == [DeadlineError] * (5 - served) + [
            Times
        ] * served
        assert engine.steps[1:] == ([(0, alive)] if alive else [])


async def test_nothing_is_computed_for_the_expired_between_steps_either(clock: Clock) -> None:
    async with running(clock) as (scheduler, engine):
        late = await asking(scheduler, pictures(1, 2, needs=3), deadline=5.0)
        await engine.busy()
        timely = await asking(scheduler, pictures(3, needs=2), deadline=15.0)
        clock.now = 5.0
        engine.release()
        with pytest.raises(DeadlineError):
            await late
        await timely
        assert engine.steps == [(0, [1, 2]), (0, [3]), (1, [3])]
        with pytest.raises(DeadlineError):
            await scheduler.submit(pictures(4), 5.0)
        assert len(engine.steps) == 3


async def test_the_deadline_is_kept_while_a_step_runs(clock: Clock) -> None:
    async with running(clock) as (scheduler, engine):
        first = await under_way((scheduler, engine), 1)
        with pytest.raises(DeadlineError):
            await scheduler.submit(pictures(2), 0.01)
        assert scheduler.queued == 0, "its place in the queue is free again"
        engine.release()
        await first
        assert engine.steps == [(0, [1])]


async def test_requests_are_cancelled_before_during_and_after_a_step() -> None:
    async with running(max_queue=6) as (scheduler, engine):
        during = await asking(scheduler, pictures(1, needs=3))
        await engine.busy()
        before = await asking(scheduler, pictures(2, 3, 4))
        neighbour = await asking(scheduler, pictures(5))
        during.cancel()
        before.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert scheduler.queued == 1
        engine.release()
        await neighbour
        assert engine.steps == [(0, [1]), (0, [5])]
        assert during.cancelled()
        assert before.cancelled()
        done = await asking(scheduler, pictures(6))
        await done
        assert not done.cancel()
        await scheduler.submit(pictures(*range(20, 26)), FAR)


async def test_a_request_is_cancelled_between_its_steps() -> None:
    async with running(max_batch=2) as (scheduler, engine):
        split = await asking(scheduler, pictures(1, 2, 3, needs=2))
        await engine.busy()
        other = await asking(scheduler, pictures(6))
        engine.release(1)
        await engine.busy()
        split.cancel()
        await asyncio.sleep(0)
        engine.release()
        await other
        assert engine.steps == [(0, [1, 2]), (1, [1, 2]), (0, [6])]


async def test_a_poison_input_hits_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as (scheduler, engine):
        first = await under_way((scheduler, engine), 1)
        cases = [Picture(value, 2) for value in (2, POISON, 3)]
        good, bad, fine = [await asking(scheduler, [case]) for case in cases]
        engine.release()
        await asyncio.gather(first, good, fine)
        with pytest.raises(InferenceError) as failure:
            await bad
        assert failure.value.detail == "the model failed on this input"
        trials = [(0, [2, POISON, 3]), (0, [2]), (0, [POISON]), (0, [3])]
        assert engine.steps == [(0, [1]), *trials, (1, [2, 3])]
        assert [case.seen for case in cases] == [[0, 1], [], [0, 1]]
        assert "poison" in caplog.text


async def test_each_request_of_a_failed_step_is_tried_alone_and_the_log_says_which_image(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(max_batch=6) as (scheduler, engine):
        first = await under_way((scheduler, engine), 0)
        good = await asking(scheduler, pictures(1, 2, needs=2))
        bad = await asking(scheduler, pictures(3, 4, POISON, 5, 6, needs=2, poisoned_at=1))
        engine.release()
        await asyncio.gather(first, good)
        with pytest.raises(InferenceError):
            await bad
        steps = [(0, [0]), (0, [1, 2, 3, 4, POISON, 5])]
        steps += [(1, [1, 2, 3, 4, POISON, 5]), (1, [1, 2])]
        steps += [(1, [3, 4, POISON, 5]), (1, [3]), (1, [4]), (1, [POISON])]
        assert engine.steps == steps, "and nothing more of it once it has failed"
        assert "image 3 of 5 failed" in caplog.text


@pytest.mark.parametrize(("failures", "ending"), [(1, Times), (2, InferenceError)])
async def test_an_image_has_a_second_chance(failures: int, ending: type[object]) -> None:
    async with running() as (scheduler, engine):
        engine.failures = failures
        task = await asking(scheduler, pictures(1, 2, needs=2))
        engine.release()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert type(outcome) is ending
        assert engine.failures == 0


async def test_where_the_time_went(clock: Clock) -> None:
    async with running(clock) as (scheduler, engine):
        first = await under_way((scheduler, engine), 1)
        clock.now = 1.0
        second = await asking(scheduler, pictures(2, needs=2))
        clock.now = 3.0
        engine.release(1)
        assert await first == Times(queue_seconds=0.0, infer_seconds=3.0)
        for now in (7.0, 8.0):
            await engine.busy()
            clock.now = now
            engine.release(1)
        assert await second == Times(queue_seconds=2.0, infer_seconds=5.0)


async def test_short_steps_are_taken_on_the_event_loop_and_long_ones_in_a_thread() -> None:
    async with running(held=False, on_loop_seconds=1.0) as (scheduler, engine):
        for value, seconds in enumerate([0.5, 0.5, 1.0, 2.0, 0.0, 0.0, 0.0]):
            engine.cost = (0.0, seconds)
            await scheduler.submit(pictures(value), FAR)
    here = threading.current_thread().name
    means = [math.inf, 0.5, 0.5, 2 / 3, 1.0, 0.8, 4 / 6]
    assert engine.threads == [here if mean < 1.0 else "inference_0" for mean in means]


async def test_the_event_loop_has_its_turn_between_steps() -> None:
    async with running(held=False, on_loop_seconds=1.0, max_batch=1) as (scheduler, engine):
        await scheduler.submit(pictures(0), FAR)
        task = await asking(scheduler, pictures(1, 2, 3, needs=2))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            assert len(engine.steps) <= 2 + (turns := turns + 1) / TURNS


async def test_a_step_that_never_ends_is_told() -> None:
    clock = Clock()
    async with running(clock) as (scheduler, engine):
        task = await under_way((scheduler, engine), 1)
        for now, alive in ((STUCK_SECONDS, True), (STUCK_SECONDS + 1, False)):
            clock.now = now
            assert scheduler.alive == alive
        engine.release()
        await task
        assert scheduler.alive


async def test_closing_finishes_what_was_admitted() -> None:
    async with running() as (scheduler, engine):
        admitted = [await asking(scheduler, pictures(value, needs=2)) for value in (1, 2, 3)]
        await engine.busy()
        closing = asyncio.ensure_future(scheduler.close(LIMIT))
        await asyncio.sleep(0)
        assert not scheduler.alive
        with pytest.raises(UnavailableError, match="stopping"):
            await scheduler.submit(pictures(4), FAR)
        engine.release()
        await closing
        await asyncio.gather(*admitted)


async def test_closing_does_not_wait_for_ever() -> None:
    async with running(max_batch=1) as (scheduler, engine):
        tasks = [
            await asking(scheduler, pictures(1, needs=2)),
            await asking(scheduler, pictures(2)),
        ]
        await engine.busy()
        await scheduler.close(0.01)
        for task in tasks:
            with pytest.raises(UnavailableError, match="stopping"):
                await task
        engine.release()
        await scheduler.close(LIMIT)
        assert engine.steps == [(0, [1])]


def workload(seed: int, count: int) -> Iterator[tuple[list[Picture], dict[str, Any]]]:
    draw = random.Random(seed)
    print(f"seed {seed}")
    for number in range(count):
        cases = [
            Picture(draw.randrange(20, 10**6), draw.randint(1, 5), f"option {number}")
            for _ in range(draw.choice((1, 1, 1, 2, 3, 9)))
        ]
        yield cases, {"client": draw.choice("abc"), "background": draw.random() < 0.2}


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_what_a_case_gets_does_not_depend_on_its_company(seed: int) -> None:
    """Every case has steps 0, 1, 2 ... with its own options, whatever it shares them with."""
    draw = random.Random(seed)
    async with running(held=False, max_batch=5, max_queue=10**6) as (scheduler, engine):
        cases, tasks = [], []
        for mine, options in workload(seed, 400):
            cases += mine
            deadline = FAR + draw.randrange(100)
            tasks.append(await asking(scheduler, mine, deadline, **options))
            if draw.random() < 0.05:
                await tasks[draw.randrange(len(tasks))]
        await asyncio.gather(*tasks)
        for case in cases:
            alone = Picture(case.value, case.needs, case.option)
            for stage in range(case.needs):
                alone.advance(stage)
            assert (case.seen, case.answer) == (alone.seen, alone.answer)
        assert max(engine.sizes) == 5
        assert sum(engine.sizes) == sum(case.needs for case in cases)


async def test_it_serves_on_after_much_abuse() -> None:
    """Chaos: requests that are cancelled, late or poisoned, or too many."""
    draw = random.Random(11)
    async with running(held=False, max_queue=48) as (scheduler, engine):
        tasks: list[asyncio.Task[Times]] = []
        for number, (cases, options) in enumerate(workload(11, 10_000)):
            if number % 40 == 0:
                cases[-1].value, cases[-1].poisoned_at = POISON, draw.randrange(cases[-1].needs)
            if number % 500 == 0:
                cases = pictures(*range(20, 69))
            engine.clock.now += draw.random()
            deadline = engine.clock.now + draw.choice((-1.0, 20.0, FAR))
            tasks.append(await asking(scheduler, cases, deadline, **options))
            if number % 3 == 0:
                draw.choice(tasks[-20:]).cancel()
            if number % 20 == 0:
                await asyncio.wait(tasks[-20:], timeout=0.001)
        outcomes = Counter(
            type(each) if isinstance(each, BaseException) else Times
            for each in await asyncio.gather(*tasks, return_exceptions=True)
        )
        errors = {DeadlineError, InferenceError, UnavailableError, asyncio.CancelledError}
        assert set(outcomes) == {Times, *errors}, "each kind of end was tried"
        assert scheduler.queued == 0
        assert [lane.images for lane in scheduler._lanes] == [0, 0]
        everything = pictures(*range(20, 68), needs=2)
        await scheduler.submit(everything, engine.clock.now + FAR)
        assert all(case.seen == [0, 1] for case in everything)
        assert max(engine.sizes) <= 4
