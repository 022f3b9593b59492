"""Baselines of the same network, data and cost: MAP and a deep ensemble.

A deep ensemble (Lakshminarayanan et al. 2017, arXiv 1612.01474) of M networks, each trained by SGD
with momentum to a maximum of the posterior (MAP), in all on as many epochs as the run's chains.
Its single networks are the MAP baseline. Both are calibrated and judged as the posterior is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training import chains
from training.calibrate import calibrate
from training.data import Dataset
from training.evaluate import evaluate
from training.recipe import Recipe, change
from training.run import Run


def run_baselines(
    run: Run, members: int, workers: int | None, report: Callable[[chains.Progress], None]
) -> dict[str, Any]:
    """Train and judge the baselines of a run; writes `baselines.json`.

    Returns:
        Figures of `training.evaluate.evaluate` by the baseline's name: the mean over the single
        networks of each figure, and those of the deep ensemble.
    """
    recipe = deep_ensemble(run.recipe, members)
    ensemble = Run.create(recipe, run.path / "baselines", run.data_dir)
    ensemble.sample(workers, report)
    positions = torch.from_numpy(np.stack([result.warm for result in ensemble.results]))

    def logits(dataset: Dataset) -> NDArray[np.float32]:
        return member_logits(ensemble, positions, dataset)

    calibration, test = logits(run.problem.calibration), logits(run.problem.test)
    ood = {name: logits(run.foreign(name)) for name in recipe.data.ood}
    shifted = {name: run.foreign(name) for name in recipe.data.shift}
    shift = {name: (logits(foreign), foreign.labels) for name, foreign in shifted.items()}

    def judge(chosen: slice) -> dict[str, Any]:
        return evaluate(
            calibrate(calibration[:, chosen]),
            "predictive_entropy",
            recipe.policies,
            (test[:, chosen], run.problem.test.labels),
            {name: values[:, chosen] for name, values in ood.items()},
            {name: (values[:, chosen], labels) for name, (values, labels) in shift.items()},
        )

    singles = [judge(slice(member, member + 1)) for member in range(members)]
    results = {
        f"MAP, mean of {members}": _mean(singles),
        f"deep ensemble, M = {members}": judge(slice(None)),
    }
    run.write("baselines.json", results)
    return results


def deep_ensemble(recipe: Recipe, members: int) -> Recipe:
    """The recipe of M networks that together take the epochs of the recipe's chains."""
    sampler = recipe.sampler
    epochs = sampler.warm_start_epochs + sampler.burn_in_epochs + sampler.sampling_epochs
    settings = {
        "chains": members,
        "warm_start_epochs": max(1, sampler.chains * epochs // members),
        "burn_in_epochs": 0,
        "sampling_epochs": 0,
    }
    return change(recipe, {"sampler": settings})


@torch.no_grad()
def member_logits(
    run: Run, positions: torch.Tensor, dataset: Dataset, batch_size: int = 500
) -> NDArray[np.float32]:
    """Logits [n, M, K] of weight vectors [M, D], one member after the other, in torch."""
    images, _ = run.problem.tensors(dataset)
    return np.stack(
        [
            np.concatenate(
                [
                    run.problem.posterior.logits(position, batch).numpy()
                    for batch in images.split(batch_size)
                ]
            )
            for position in positions
        ],
        axis=1,
    )


def _mean(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Entry by entry mean of dictionaries of one shape; None where any entry is None."""

    def merge(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: merge([value[key] for value in values]) for key in values[0]}
        return None if None in values else float(np.mean(values))

    merged: dict[str, Any] = merge(results)
    return merged
