"""Which images the gate lets through: its detectors beside others, and beside trivial ones.

    python -m benchmarks.uncertainty --out DIR [--data-dir DATA] [--workers 2]

DIR is the folder of `benchmarks.posterior`, whose networks this reads. Writes `uncertainty.json`
and `uncertainty.md` there. Ctrl-C stops it; the same command goes on, seed by seed.

Thresholds come from calibration images: 20 random halves of the recipe's, so that every figure has
the spread of the calibration too. No foreign set has a part in anything but its own column.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import describe
from benchmarks.trivial import Trivial
from benchmarks.uncertainty_tables import tables
from models.conformal import ConformalTest
from models.detectors import DETECTORS
from models.preprocessing import LUMA, grey, prepare
from models.uncertainty import Array
from training import data, detection, metrics, pool
from training.baselines import fit, label, member_logits
from training.baselines.judge import over_members, posterior_logits
from training.checkpoint import ChainError
from training.data import DataError, Dataset, data_directory, from_arrays
from training.evaluate import Answers, Logits
from training.run import Run, RunError
from training.views import FRAME, frame

METHODS: dict[str, tuple[str, ...]] = {
    "map-8": ("max_probability", "energy"),
    "ensemble-5": ("predictive_entropy",),
    "ensemble-8": ("predictive_entropy", "mutual_information"),
    "dropout": ("predictive_entropy",),
    "swag": ("predictive_entropy",),
    "laplace": ("predictive_entropy",),
}
POSTERIOR = "langevin-1"
FLAG_AT, LEAK_AT = 0.01, 0.001
FIGURES = "figures-uncertainty.json"
SPLITS = 20
NOISE_IMAGES = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.uncertainty", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder of benchmarks.posterior")
    parser.add_argument("--data-dir", type=Path, help="folder with data sets")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    seeds = sorted(path for path in options.out.glob("seed-*") if path.is_dir())
    if not seeds:
        sys.exit(f"error: {options.out}: no seed-* here: run benchmarks.posterior first")
    try:
        print(compare(seeds, data_directory(options.data_dir), options.out, options.workers))
    except (ChainError, DataError, RunError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes")


def compare(seeds: list[Path], data_dir: Path, out: Path, workers: int) -> str:
    """Judge the seeds that have not been, write the report, and return its tables."""
    tasks = [partial(judge, path, data_dir) for path in seeds if not (path / FIGURES).exists()]
    if tasks:
        pool.run_tasks(tasks, workers, print)
    figures = [json.loads((path / FIGURES).read_text()) for path in seeds]
    recipe = Run.open(seeds[0], data_dir).recipe
    report = {
        "recipe": recipe.model_dump(mode="json", exclude={"seed"}),
        "seeds": [path.name.removeprefix("seed-") for path in seeds],
        "machine": describe("torch"),
        "rows": {row: [seed[row] for seed in figures] for row in figures[0]},
    }
    (out / "uncertainty.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    (out / "uncertainty.md").write_text(tables(report))
    return tables(report)


def judge(
    path: Path, data_dir: Path, say: Callable[[str], None], stopped: Callable[[], bool]
) -> None:
    """Every row of one seed, into its folder."""

    def follow(_: object = None) -> None:
        if stopped():
            raise KeyboardInterrupt

    run = Run.open(path, data_dir)
    problem, spec = run.problem, run.problem.input
    sets = {"calibration": problem.calibration, "test": problem.test, **foreign_sets(run)}
    rows: dict[str, dict[str, Any]] = {}

    def logits_of(name: str) -> dict[str, Logits]:
        positions = torch.from_numpy(fit(name, run, 1, follow).positions)
        found = {}
        for part, dataset in sets.items():
            follow()
            found[part] = member_logits(problem, positions, dataset)
        say(f"{path.name}: {name}")
        return found

    for name, scores in METHODS.items():
        logits = logits_of(name)
        members, together = logits["test"].shape[1], not name.startswith("map")
        separated = over_members(members, together, partial(_alone, logits, scores))
        rows |= {f"{label(name, members)}: {score}": separated[score] for score in scores}
    pixels = {part: grey(prepare(each.images, spec)[0], spec) for part, each in sets.items()}
    positions = torch.from_numpy(fit(POSTERIOR, run, 1, follow).positions)

    def ensemble(prepared: NDArray[np.float32]) -> Logits:
        return posterior_logits(problem.posterior, positions, torch.from_numpy(prepared))

    detectors = detection.fit(problem.train, spec, ensemble, run.recipe.seed).detectors
    logits = logits_of(POSTERIOR)
    answers = {part: Answers.detected(logits[part], pixels[part], detectors) for part in sets}
    for score in DETECTORS:
        named = f"{label(POSTERIOR, len(positions))}: {score}"
        rows[named] = separations({part: each.scores[score] for part, each in answers.items()})
    order = np.random.default_rng(run.recipe.seed).permutation(len(problem.train))
    train = problem.train.select(order[:20_000])
    trivial = Trivial.fit(grey(prepare(train.images, spec)[0], spec))
    for score, detector in trivial.scores.items():
        follow()
        rows[f"trivial: {score}"] = separations(
            {part: detector(values) for part, values in pixels.items()}
        )
    run.write(FIGURES, rows)
    say(f"{path.name}: done")


def _alone(logits: Mapping[str, Logits], scores: tuple[str, ...], chosen: slice) -> dict[str, Any]:
    """Figures of scores of the chosen members alone."""
    answers = {part: Answers.of(values[:, chosen]) for part, values in logits.items()}
    return {
        score: separations({part: each.scores[score] for part, each in answers.items()})
        for score in scores
    }


def foreign_sets(run: Run) -> dict[str, Dataset]:
    """Unfamiliar sets: the recipe's, the same framed as MNIST is, grey CIFAR-10, and noise."""
    sets: dict[str, Dataset] = {}
    for name in run.recipe.data.ood:
        part = run.foreign(name)
        sets[name] = part
        framed = frame(part.images)
        sets[f"{name}-20"] = from_arrays(framed, part.labels, part.classes, name=name)
    colours = data.load("cifar10", "test", run.data_dir)
    middle = slice(2, 2 + FRAME)
    luma = np.rint(colours.images[:, middle, middle] @ LUMA).astype(np.uint8)[..., None]
    sets["cifar10-grey"] = from_arrays(luma, colours.labels, colours.classes, name="cifar10")
    noise = np.random.default_rng(0).integers(0, 256, (NOISE_IMAGES, FRAME, FRAME, 1), np.uint8)
    zeros = np.zeros(NOISE_IMAGES, dtype=np.int64)
    sets["noise"] = from_arrays(noise, zeros, ("noise",), name="noise")
    return sets


def separations(scores: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """Figures of one score by foreign set, and the share of test images that it flags.

    `auroc`, `fpr95`, `fpr99`: of the set against the test images. `leak`: share of the set that is
    accepted at a false-alarm rate of 0.1 %, by thresholds from halves of the calibration images.
    """
    calibration, test = scores["calibration"], scores["test"]
    randomness = np.random.default_rng(0)
    halves = [
        ConformalTest.fit(randomness.permutation(calibration)[: len(calibration) // 2])
        for _ in range(SPLITS)
    ]

    def accepted(values: Array, alpha: float) -> list[float]:
        return [float(np.mean(half.p_values(values) > alpha)) for half in halves]

    figures = {
        name: {
            "auroc": metrics.auroc(test, values),
            "fpr95": metrics.missed_at(test, values, 0.95),
            "fpr99": metrics.missed_at(test, values, 0.99),
            "leak": float(np.mean(accepted(values, LEAK_AT))),
        }
        for name, values in scores.items()
        if name not in ("calibration", "test")
    }
    rates = accepted(test, FLAG_AT)
    figures["test"] = {"flagged": 1 - float(np.mean(rates)), "spread": float(np.std(rates))}
    return figures


if __name__ == "__main__":
    main()
