"""The posterior beside other ways to make one network an ensemble, at equal training epochs.

    python -m benchmarks.posterior --out DIR [--recipe mnist] [--seeds 1 2 3] [--epochs 120]
                                   [--chains 4] [--data-dir DATA] [--workers 2]

Fits every method on every seed, judges it, and writes `posterior.json` and `posterior.md` in DIR.
Ctrl-C stops it; the same command goes on, and nothing that was finished is computed again. With
the mnist recipe an epoch is about 4 CPU seconds, and the default run about 2 hours on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.machine import describe
from benchmarks.posterior_figures import equivalents, judge
from benchmarks.posterior_tables import tables
from training import pool
from training import recipe as recipes
from training.baselines import fit, label
from training.baselines.ensemble import budget
from training.chains import Progress as Step
from training.checkpoint import ChainError
from training.data import DataError, data_directory
from training.recipe import Recipe, RecipeError, change
from training.run import Run, RunError

CHAINS = (
    "ensemble-5",
    "ensemble-8",
    "langevin-0",
    "langevin-0.0001",
    "langevin-0.1",
    "langevin-1",
    "langevin-6",
)
METHODS = ("map-8", "ensemble-5", "ensemble-8", "dropout", "swag", "laplace", *CHAINS[2:])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.posterior", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--recipe", default="mnist", help="name, or path of a .toml file")
    parser.add_argument("--data-dir", type=Path, help="folder with data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--epochs", type=int, default=120, help="of a method, all networks together"
    )
    parser.add_argument("--chains", type=int, default=4, help="of the sampled methods")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    try:
        recipe = shortened(recipes.load(options.recipe), options.chains, options.epochs)
        data_dir = data_directory(options.data_dir)
        runs = [
            Run.create(change(recipe, {"seed": seed}), options.out / f"seed-{seed}", data_dir)
            for seed in options.seeds
        ]
        compare(runs, options.out, options.workers)
    except (ChainError, DataError, RecipeError, RunError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes")


def shortened(recipe: Recipe, chains: int, epochs: int) -> Recipe:
    """The recipe with C chains that take `epochs` in all, each phase in its old proportion.

    Cycles stay as they are: one is burn-in, and as many follow as there are epochs for.
    """
    each, sampler = epochs // chains, recipe.sampler
    before = budget(recipe) / sampler.chains
    warm, burn_in = (
        max(1, round(length * each / before))
        for length in (sampler.warm_start_epochs, sampler.burn_in_epochs)
    )
    schedule = sampler.schedule.model_dump()
    if "epochs" in schedule:
        schedule["epochs"] = max(1, round(schedule["epochs"] * each / before))
    if "cycle_epochs" in schedule:
        warm, burn_in = sampler.warm_start_epochs, schedule["cycle_epochs"]
        each = warm + (each - warm) // burn_in * burn_in
    if each <= warm + burn_in:
        raise RecipeError(f"{epochs} epochs are too few for {chains} chains")
    settings = {
        "chains": chains,
        "prior_starts": min(sampler.prior_starts, chains // 2),
        "warm_start_epochs": warm,
        "burn_in_epochs": burn_in,
        "sampling_epochs": each - warm - burn_in,
        "schedule": schedule,
    }
    members = min(recipe.members, chains * sampler.samples)
    return change(recipe, {"members": members, "sampler": settings})


def compare(runs: list[Run], out: Path, workers: int) -> None:
    """Fit and judge what is missing, and write the report."""
    for run in runs:
        for name in CHAINS:
            with _bar(f"seed {run.recipe.seed}, {name}", budget(run.recipe)) as follow:
                fit(name, run, workers, follow)
    _judge_all(runs, workers)
    report = collect(runs)
    (out / "posterior.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    (out / "posterior.md").write_text(tables(report))
    print(tables(report))


def collect(runs: list[Run]) -> dict[str, Any]:
    """All figures: by method, then in the order of the seeds."""
    recipe = runs[0].recipe
    methods: dict[str, list[dict[str, Any]]] = {
        name: [json.loads(_figures_file(run, name).read_text()) for run in runs] for name in METHODS
    }
    equivalents(methods)
    return {
        "recipe": recipe.model_dump(mode="json", exclude={"seed"}),
        "seeds": [run.recipe.seed for run in runs],
        "epochs": budget(recipe),
        "machine": describe("torch"),
        "labels": {name: label(name, recipe.members) for name in METHODS},
        "methods": methods,
    }


def _judge_all(runs: list[Run], workers: int) -> None:
    """Judge every method, each in one process, fitting there what needs only one."""
    missing = [
        (run, name) for run in runs for name in METHODS if not _figures_file(run, name).exists()
    ]
    tasks = [
        partial(judge, run.path, run.data_dir, name, _figures_file(run, name).name)
        for run, name in missing
    ]
    if tasks:
        with _count("methods fitted and judged", len(tasks)) as advance:
            pool.run_tasks(tasks, workers, lambda line: advance())


def _figures_file(run: Run, name: str) -> Path:
    return run.path / f"figures-{name}.json"


@contextmanager
def _bar(description: str, epochs: int) -> Iterator[Callable[[Step], None]]:
    latest: dict[int, int] = {}
    with _progress() as bars:
        task = bars.add_task(description, total=epochs)

        def follow(step: Step) -> None:
            latest[step.chain] = step.epoch
            bars.update(task, completed=sum(latest.values()))

        yield follow
        bars.update(task, completed=epochs)


@contextmanager
def _count(description: str, total: int) -> Iterator[Callable[[], None]]:
    with _progress() as bars:
        task = bars.add_task(description, total=total)
        yield lambda: bars.advance(task)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )


if __name__ == "__main__":
    main()
