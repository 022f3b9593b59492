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


def main(
    bundle: Annotated[Path, typer.Argument()] = Path("models/pretrained/mnist"),
    data_dir: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Print one row for each stage, in Markdown."""
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

    def milliseconds(pool: NDArray[np.int64], stage: int, size: int) -> float:
        seconds = []
        for _ in range(REPEATS):
            taken = cases(randomness.choice(pool, size))
            for _ in range(stage):
                stepper.step(taken)
            stepper.step(cases(randomness.choice(plain, BEFORE)))
            began = time.perf_counter()
            stepper.step(taken)
            seconds.append(time.perf_counter() - began)
        return 1000 * statistics.median(seconds)

    ends = (0, *stops(rule.policy, model.runtime.group, model.runtime.members))
    print(f"{describe('onnxruntime')}\n")
    print(f"| members | share of images (%) | {' | '.join(map(str, SIZES))} |")
    print("|---" * (len(SIZES) + 2) + "|")
    for stage, (seen, until) in enumerate(pairwise(ends)):
        pool = hard if stage else plain
        row = [f"{milliseconds(pool, stage, size):.2f}" for size in SIZES]
        share = 100 * (needed > stage).mean()
        print(f"| {seen + 1} to {until} | {share:.1f} | {' | '.join(row)} |")


if __name__ == "__main__":
    typer.run(main)
