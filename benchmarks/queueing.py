"""What waiting makes of the slowest answers: the service's own order of work, in virtual time.

    python -m benchmarks.queueing [BUNDLE] [--data-dir DATA] [--http-us 66] [--rate RATE]

Steps take what `benchmarks.steps` measures of them, and each request so many microseconds of HTTP
besides; nothing else happens, as on a machine that is never disturbed. `service.lanes` says which
step is the next. Capacity is that of a closed loop of 128 clients; then requests come at 80 % of
it, and at one rate for all, as a Poisson process. Each row changes one thing: what it would be if
images under way always went before new ones, if steps cost nothing but what each image adds, and if
no image needed a second step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.machine import describe
from benchmarks.serving.openloop import arrivals
from benchmarks.steps import SIZES, StepTimes, measure
from service.lanes import Job, Lane

Array = NDArray[np.float64]

MAX_BATCH = SIZES[-1]
CLIENTS = 128
SHARE = 0.8
SECONDS = 60.0
SEED = 1
NEVER = 10**9


@dataclass(slots=True)
class Request:
    """One image, as a queue sees it."""

    needed: int
    stage: int = 0

    @property
    def settled(self) -> bool:
        """Whether it has had all steps that it needs."""
        return self.stage >= self.needed


@dataclass(frozen=True)
class Service:
    """What costs time, in seconds.

    Attributes:
        steps: for each stage, of a step with 1, 2, ... images.
        shares: of requests that come to each stage; the first is 1.
        http: of reading and answering a request.
        most: images in a step.
        full: new images that must wait for those under way not always to go first.
    """

    steps: tuple[Array, ...]
    shares: tuple[float, ...]
    http: float
    most: int = MAX_BATCH
    full: int = MAX_BATCH

    def needs(self, seed: int) -> Iterator[int]:
        """Steps that one request after the other needs."""
        randomness = np.random.default_rng(seed)
        while True:
            yield from (randomness.random(1024)[:, None] < self.shares).sum(axis=1).tolist()


def open_loop(service: Service, rate: float, seconds: float = SECONDS, seed: int = SEED) -> Array:
    """Seconds until each answer, if requests come at `rate` a second."""
    latencies, _ = _run(service, arrivals(rate, seconds, seed).tolist(), math.inf, seed)
    return latencies


def capacity(service: Service, seconds: float = SECONDS / 4, seed: int = SEED) -> float:
    """Answers a second to `CLIENTS` who ask again at once."""
    latencies, end = _run(service, [0.0] * CLIENTS, seconds, seed)
    return len(latencies) / end


def _run(service: Service, due: Sequence[float], until: float, seed: int) -> tuple[Array, float]:
    """Seconds until each answer, and when the last was given.

    Requests come when they are `due`. Before the time `until`, if it is finite, each that is
    answered is followed by another at once.
    """
    lane, needs = Lane[Request](), service.needs(seed)
    latencies: list[float] = []
    waiting, now = list(reversed(due)), 0.0
    while waiting or lane.images:
        if not lane.images:
            now = max(now, waiting[-1])
        while waiting and waiting[-1] <= now:
            came = waiting.pop()
            lane.add(_job(lane, came, next(needs)))
            now += service.http
        stage = lane.stage(now, service.full)
        places = [place for _ in range(service.most) if (place := lane.pop(stage))]
        now += float(service.steps[stage][len(places) - 1])
        for job, request in places:
            request.stage += 1
            if not request.settled:
                lane.put_back(job, request)
                continue
            lane.images -= 1
            latencies.append(now - job.arrived)
            if now < until < math.inf:
                waiting.append(now)
    return np.array(latencies), now


def _job(lane: Lane[Request], arrived: float, needed: int) -> Job[Request]:
    return Job([Request(needed)], "", lane, arrived, math.inf, lambda answer: None, 1)


def service_of(times: Sequence[StepTimes], http: float) -> Service:
    """What was measured, between the sizes in straight lines."""
    numbers = np.arange(1, MAX_BATCH + 1)
    steps = tuple(np.interp(numbers, SIZES, each.seconds) for each in times)
    return Service(steps, tuple(each.share for each in times), http)


def without_fixed_costs(steps: Sequence[Array]) -> tuple[Array, ...]:
    """Steps of which each image costs what it adds to a full one, and nothing else is paid."""
    return tuple(
        np.arange(1, len(each) + 1) * (each[-1] - each[0]) / (len(each) - 1) for each in steps
    )


def variants(service: Service) -> dict[str, Service]:
    """The service as it is, and what it might be."""
    first, *later = service.steps
    return {
        "as it is": service,
        "images under way always first": replace(service, full=NEVER),
        "later steps without fixed costs": replace(
            service, steps=(first, *without_fixed_costs(later))
        ),
        "no step with fixed costs": replace(service, steps=without_fixed_costs(service.steps)),
        "one step for every image": replace(service, shares=(1.0, *(0.0 for _ in later))),
    }


def main(
    bundle: Annotated[Path, typer.Argument()] = Path("models/pretrained/mnist"),
    data_dir: Annotated[Path | None, typer.Option()] = None,
    http_us: Annotated[float, typer.Option(help="HTTP of one request, in microseconds")] = 66.0,
    rate: Annotated[float, typer.Option(help="requests a second, of the last columns")] = 4000.0,
) -> None:
    """Print one row for each variant, in Markdown; times in milliseconds."""
    service = service_of(measure(bundle, data_dir), 1e-6 * http_us)
    print(f"{describe('onnxruntime')}; seed {SEED}\n")
    print(f"| | capacity | p50 | p99 | p50 at {rate:.0f}/s | p99 at {rate:.0f}/s |")
    print("|---" * 6 + "|")
    for name, each in variants(service).items():
        most = capacity(each)
        found = [1000 * open_loop(each, load) for load in (SHARE * most, rate)]
        row = [f"{value:.1f}" for times in found for value in np.percentile(times, (50, 99))]
        print(f"| {name} | {most:.0f} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
