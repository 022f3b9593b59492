"""One method on one seed: every figure that `benchmarks.posterior` reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.uncertainty import softmax
from training.baselines import fit, member_logits
from training.baselines.judge import over_members
from training.chains import Progress
from training.data import Dataset, from_arrays
from training.evaluate import Answers, Labels, Logits, quality, separation
from training.metrics import deep_ensemble_equivalent, ensemble_curve
from training.run import Run
from training.views import frame, rotate

DEGREES = (15, 30, 45, 60, 75, 90)
TURNED_EVERY = 4  # of the test images, at each angle
REFERENCE = "ensemble-8"


def judge(
    path: Path,
    data_dir: Path,
    name: str,
    file: str,
    say: Callable[[str], None],
    stopped: Callable[[], bool],
) -> None:
    """Fit a method, unless it has been, and write its figures into the run directory.

    Takes a function to say that it is done, and one to ask whether to stop.
    """

    def follow(step: Progress | None = None) -> None:
        if stopped():
            raise KeyboardInterrupt

    run = Run.open(path, data_dir)
    ensemble = fit(name, run, 1, follow)
    problem, positions = run.problem, torch.from_numpy(ensemble.positions)

    def logits(part: Dataset) -> Logits:
        follow()
        return member_logits(problem, positions, part)

    test = logits(problem.test)
    ood, shift = {}, {}
    for foreign in run.recipe.data.ood:
        part = run.foreign(foreign)
        ood[foreign] = logits(part)
        ood[f"{foreign}-20"] = logits(_seen(part, frame(part.images)))
    for shifted in run.recipe.data.shift:
        part = run.foreign(shifted)
        shift[shifted] = (logits(part), part.labels)
    turned = problem.test.select(np.arange(0, len(problem.test), TURNED_EVERY))
    rotation = {
        str(angle): (logits(_seen(turned, rotate(turned.images, angle))), turned.labels)
        for angle in DEGREES
    }

    def figures(chosen: slice) -> dict[str, Any]:
        familiar = Answers.of(test[:, chosen])

        def known(sets: dict[str, tuple[Logits, Labels]]) -> dict[str, Any]:
            return {
                name: quality(Answers.of(values[:, chosen]), labels)
                for name, (values, labels) in sets.items()
            }

        return {
            "test": quality(familiar, problem.test.labels),
            "ood": {
                name: separation(familiar, Answers.of(values[:, chosen]))
                for name, values in ood.items()
            },
            "shift": known(shift),
            "rotation": known(rotation),
        }

    results = over_members(len(positions), ensemble.together, figures)
    if name == REFERENCE:
        results["curve"] = ensemble_curve(softmax(test), problem.test.labels).tolist()
    results |= {
        "members": len(positions),
        "epochs": ensemble.epochs,
        "seconds": ensemble.seconds,
        "temperature": ensemble.temperature,
        "settings": ensemble.settings,
    }
    run.write(file, results)
    say(file)


def equivalents(methods: dict[str, list[dict[str, Any]]]) -> None:
    """Add the deep-ensemble equivalent to every method's figures, on the curve of its own seed.

    None stands for more networks than the curve has.
    """
    for results in methods.values():
        for figures, reference in zip(results, methods[REFERENCE], strict=True):
            curve = np.array(reference["curve"])
            networks = deep_ensemble_equivalent(figures["test"]["nll"], curve)
            figures["deep_ensemble_equivalent"] = None if math.isinf(networks) else networks


def _seen(part: Dataset, images: np.ndarray[Any, np.dtype[np.uint8]]) -> Dataset:
    return from_arrays(images, part.labels, part.classes, name=part.name)
