"""What a step of the service takes, by how many members its images have been shown to, and images.

    python -m benchmarks.steps [BUNDLE] [--data-dir DATA]

The default policy, traffic as in `benchmarks.serving`, one thread. Newcomers are decoded in their
step, and most are judged in it; a later step is of images that need all members. Before each step
one of eight newcomers is taken, as a queue would: what follows another is slower than what repeats
itself. Milliseconds, medians.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.machine import describe
from benchmarks.serving import traffic
from models.settling import stops
from service.cases import Case, Stepper
from service.intake import Sent, open_sent
from service.repository import open_model
from service.results import choose_options
from service.settings import Settings
from training.data import data_directory

SIZES = (1, 2, 4, 8, 16, 32, 64)
BEFORE = 8
REPEATS = 40
MOST_PIXELS = 10_000


@dataclass(frozen=True)
class StepTimes:
    """Of the steps at one stage.

    Attributes:
        seen: members that its images were shown to before.
        until: and after it.
        share: of all images that come to it.
        seconds: a step takes, for each of `SIZES`.
    """

    seen: int
    until: int
    share: float
    seconds: tuple[float, ...]


def measure(bundle: Path, data_dir: Path | None) -> list[StepTimes]:
    """The times of every stage, in order."""
    model = open_model(Settings(bundle=bundle, device="cpu", threads=1))
    rule = choose_options(model, "default").rule
    stepper = Stepper(model.bundle, model.runtime)
    pngs = traffic.images(data_directory(data_dir))

    def cases(chosen: Iterable[int]) -> list[Case]:
        opened = open_sent([Sent(pngs[index], "/body") for index in chosen], MOST_PIXELS)
        return [Case(image, rule) for image in opened]

    everyone = cases(range(len(pngs)))
    stepper.run(everyone)
    needed = np.array([case.stage for case in everyone])
    plain, hard = np.flatnonzero(needed == 1), np.flatnonzero(needed == needed.max())
    randomness = np.random.default_rng(0)
    gc.collect()
    gc.freeze()

    def median(pool: NDArray[np.int64], stage: int, size: int) -> float:
        seconds = []
        for _ in range(REPEATS):
            taken = cases(randomness.choice(pool, size))
            for _ in range(stage):
                stepper.step(taken)
            stepper.step(cases(randomness.choice(plain, BEFORE)))
            began = time.perf_counter()
            stepper.step(taken)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    ends = (0, *stops(rule.policy, model.runtime.group, model.runtime.members))
    return [
        StepTimes(
            seen,
            until,
            float((needed > stage).mean()),
            tuple(median(hard if stage else plain, stage, size) for size in SIZES),
        )
        for stage, (seen, until) in enumerate(pairwise(ends))
    ]


def main(
    bundle: Annotated[Path, typer.Argument()] = Path("models/pretrained/mnist"),
    data_dir: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Print one row for each stage, in Markdown."""
    times = measure(bundle, data_dir)
    print(f"{describe('onnxruntime')}\n")
    print(f"| members | share of images (%) | {' | '.join(map(str, SIZES))} |")
    print("|---" * (len(SIZES) + 2) + "|")
    for each in times:
        row = " | ".join(f"{1000 * seconds:.2f}" for seconds in each.seconds)
        print(f"| {each.seen + 1} to {each.until} | {100 * each.share:.1f} | {row} |")


if __name__ == "__main__":
    typer.run(main)
