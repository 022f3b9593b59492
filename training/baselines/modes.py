"""MAP and the deep ensemble: the same networks, judged one by one and together.

Each is trained by SGD with momentum on Ū from its own initial weights, as the warm start of a chain
is, to a maximum of the posterior (MAP). M of them are a deep ensemble (Lakshminarayanan et al.
2017, arXiv 1612.01474), here with the prior that the posterior has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.baselines.ensemble import Ensemble, budget, timed
from training.chains import Progress
from training.recipe import Recipe, change
from training.run import Run


def deep_ensemble(
    run: Run, folder: Path, members: int, workers: int | None, report: Callable[[Progress], None]
) -> Ensemble:
    """M networks that together take the epochs of the run's chains, at least one each."""
    recipe = networks(run.recipe, members)
    trained = Run.create(recipe, folder, run.data_dir)
    _, seconds = timed(lambda: trained.sample(workers, report), folder / "seconds")
    positions = np.stack([result.warm for result in trained.results])
    return Ensemble(positions, members * recipe.sampler.warm_start_epochs, seconds)


def alone(ensemble: Ensemble) -> Ensemble:
    """The same networks as M estimates of MAP, at the cost of one."""
    members = len(ensemble.positions)
    return replace(
        ensemble,
        epochs=ensemble.epochs / members,
        seconds=ensemble.seconds / members,
        together=False,
    )


def networks(recipe: Recipe, members: int) -> Recipe:
    """The recipe of M warm starts that together take the epochs of the recipe's chains."""
    settings = {
        "chains": members,
        "warm_start_epochs": max(1, budget(recipe) // members),
        "burn_in_epochs": 0,
        "sampling_epochs": 0,
        "half_step_epochs": 0,
        "prior_starts": 0,
        "warm_start": "map",
    }
    return change(recipe, {"sampler": settings})
