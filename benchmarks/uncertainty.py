"""Which images the gate lets through, and how good its answers are, beside other methods.

    python -m benchmarks.uncertainty --out DIR [--data-dir DATA] [--workers 2]

DIR is the folder of `benchmarks.posterior`, whose networks this reads. Writes `uncertainty.json`
and `uncertainty.md` there: unfamiliar images and false alarms of every score, trivial ones among
them; quality, selective risk and shift of every method; and the gate's own decisions. What is
familiar is the data set of the runs' recipe, and what is not, its `data.ood`. Ctrl-C stops it; the
same command goes on, seed by seed.

Thresholds come from calibration images: 20 random halves of the recipe's, so that every figure has
the spread of the calibration too. No foreign set has a part in anything but its own column.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.feature_detectors import FeatureDetectors
from benchmarks.machine import describe
from benchmarks.sets import Grouped, each, grouped_sets
from benchmarks.trivial import Trivial
from benchmarks.uncertainty_figures import gate_figures, method_figures, separations
from benchmarks.uncertainty_tables import tables
from models.conformal import CalibrationError
from models.detectors import DETECTORS, ENSEMBLE
from models.outputs import Ensemble, Outputs
from models.preprocessing import grey, prepare
from models.shape import Pixels
from models.uncertainty import Array
from training import detection, pool
from training.baselines import fit, label, member_logits
from training.baselines.judge import member_outputs, over_members
from training.certify import CertifyError
from training.checkpoint import ChainError
from training.data import DataError, Dataset, data_directory
from training.evaluate import Answers, Logits
from training.run import Run, RunError

METHODS: dict[str, tuple[str, ...]] = {
    "map-8": ("max_probability", "energy"),
    "ensemble-5": ("predictive_entropy",),
    "ensemble-8": ("predictive_entropy", "mutual_information"),
    "dropout": ("predictive_entropy",),
    "swag": ("predictive_entropy",),
    "laplace": ("predictive_entropy",),
}
POSTERIOR = "langevin-1"
FIGURES = "uncertainty.json"
TRAINING_IMAGES = 20_000


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
    except (CalibrationError, CertifyError, ChainError, DataError, RunError) as error:
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
        "rows": _by_name(figures, "rows"),
        "methods": _by_name(figures, "methods"),
        "gate": [seed["gate"] for seed in figures],
    }
    (out / "uncertainty.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    (out / "uncertainty.md").write_text(tables(report))
    return tables(report)


def _by_name(figures: list[dict[str, Any]], kind: str) -> dict[str, list[dict[str, Any]]]:
    """Figures by the name of what they are of, then in the order of the seeds."""
    return {name: [seed[kind][name] for seed in figures] for name in figures[0][kind]}


def judge(
    path: Path, data_dir: Path, say: Callable[[str], None], stopped: Callable[[], bool]
) -> None:
    """Every figure of one seed, into its folder."""

    def follow(_: object = None) -> None:
        if stopped():
            raise KeyboardInterrupt

    run = Run.open(path, data_dir)
    problem, spec = run.problem, run.problem.input
    sets = grouped_sets(run)
    rows: dict[str, dict[str, Any]] = {}
    methods: dict[str, dict[str, Any]] = {}

    def logits_of(name: str) -> Grouped[Logits]:
        positions = torch.from_numpy(fit(name, run, 1, follow).positions)

        def logits(part: Dataset) -> Logits:
            follow()
            return member_logits(problem, positions, part)

        found = each(logits, sets)
        say(f"{path.name}: {name}")
        return found

    for name, scores in METHODS.items():
        logits = logits_of(name)
        members, together = logits["familiar"]["test"].shape[1], not name.startswith("map")
        judged = over_members(members, together, partial(_alone, sets, logits, scores))
        methods[label(name, members)] = judged["figures"]
        rows |= {f"{label(name, members)}: {score}": judged[score] for score in scores}
    positions = torch.from_numpy(fit(POSTERIOR, run, 1, follow).positions)

    def ensemble(prepared: NDArray[np.float32]) -> Outputs:
        follow()
        return member_outputs(
            problem.network, run.recipe.group, positions, torch.from_numpy(prepared)
        )

    detectors = detection.fit(problem.train, spec, ensemble, run.recipe.seed).detectors
    pixels = each(lambda part: grey(prepare(part.images, spec)[0], spec), sets)
    outputs = each(lambda part: ensemble(prepare(part.images, spec)[0]), sets)
    say(f"{path.name}: {POSTERIOR}")
    answers = {
        group: {
            name: Answers.detected(values, pixels[group][name], detectors)
            for name, values in parts.items()
        }
        for group, parts in outputs.items()
    }
    named = label(POSTERIOR, len(positions))
    methods[named] = method_figures(answers, sets)
    everyone = each(lambda values: Answers.of(values.logits), outputs)
    rows |= {f"{named}: {score}": separations(_scores(everyone, score)) for score in ENSEMBLE}
    rows |= {f"gate: {score}": separations(_scores(answers, score)) for score in DETECTORS}
    rows |= _of_features(run, ensemble, outputs, answers)
    rows |= _trivial(run, {**pixels["familiar"], **pixels["foreign"]})
    gate = gate_figures(run.recipe.policies["default"], answers, sets)
    run.write(FIGURES, {"rows": rows, "methods": methods, "gate": gate})
    say(f"{path.name}: done")


def _of_features(
    run: Run, ensemble: Ensemble, outputs: Grouped[Outputs], answers: Grouped[Answers]
) -> dict[str, dict[str, Any]]:
    """Figures of the detectors on features that the gate leaves out."""
    known = _some(run)
    features = ensemble(prepare(known.images, run.problem.input)[0]).features
    judged = {
        name: (part.features, answers[group][name].classes)
        for group in ("familiar", "foreign")
        for name, part in outputs[group].items()
    }
    fitted = FeatureDetectors.fit(features, known.labels, len(known.classes))
    return {
        score: separations({name: detector(*values) for name, values in judged.items()})
        for score, detector in fitted.scores.items()
    }


def _trivial(run: Run, pixels: dict[str, Pixels]) -> dict[str, dict[str, Any]]:
    """Figures of the detectors without a network, from grey values [n, H, W] of each set."""
    spec = run.problem.input
    images, _ = prepare(_some(run).images, spec)
    return {
        f"trivial: {score}": separations(
            {name: detector(values) for name, values in pixels.items()}
        )
        for score, detector in Trivial.fit(grey(images, spec)).scores.items()
    }


def _some(run: Run) -> Dataset:
    """Training images in random order."""
    train = run.problem.train
    order = np.random.default_rng(run.recipe.seed).permutation(len(train))
    return train.select(order[:TRAINING_IMAGES])


def _alone(
    sets: Grouped[Dataset], logits: Grouped[Logits], scores: tuple[str, ...], chosen: slice
) -> dict[str, Any]:
    """Figures of the chosen members alone, and of some of their scores."""
    answers = each(lambda values: Answers.of(values[:, chosen]), logits)
    separated = {score: separations(_scores(answers, score)) for score in scores}
    return {"figures": method_figures(answers, sets), **separated}


def _scores(answers: Grouped[Answers], score: str) -> dict[str, Array]:
    """One score of the familiar and the foreign sets."""
    judged = answers["familiar"] | answers["foreign"]
    return {name: part.scores[score] for name, part in judged.items()}


if __name__ == "__main__":
    main()
