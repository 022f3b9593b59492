"""Baselines judged as the posterior is: calibrated on the same images, tested on the same sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.networks import Network
from models.outputs import Outputs
from training import chains
from training.baselines.catalogue import fit, label
from training.calibrate import calibrate, fit_sets
from training.data import Dataset
from training.evaluate import Answers, evaluate
from training.problem import Problem
from training.run import Run

Logits = NDArray[np.float32]

TOGETHER = 128


def run_baselines(
    run: Run,
    members: int,
    workers: int | None,
    report: Callable[[chains.Progress], None],
    methods: Sequence[str] = (),
) -> dict[str, Any]:
    """Train and judge baselines of a run; writes `baselines.json`.

    Args:
        run: the run.
        members: networks in the deep ensemble.
        workers: processes side by side; all cores by default.
        report: told of every epoch.
        methods: names as in `training.baselines.catalogue`; by default MAP and the deep ensemble.

    Returns:
        Figures of `training.evaluate.evaluate` by the baseline's label.

    Raises:
        MethodError: there is no such method.
    """
    names = methods or (f"map-{members}", f"ensemble-{members}")
    labels = {name: label(name, run.recipe.members) for name in names}
    results = {labels[name]: _judge(run, name, workers, report) for name in names}
    run.write("baselines.json", results)
    return results


def _judge(
    run: Run, name: str, workers: int | None, report: Callable[[chains.Progress], None]
) -> dict[str, Any]:
    ensemble, recipe = fit(name, run, workers, report), run.recipe
    positions = torch.from_numpy(ensemble.positions)

    def logits(dataset: Dataset) -> Logits:
        return member_logits(run.problem, positions, dataset)

    calibration, test = logits(run.problem.calibration), logits(run.problem.test)
    ood = {name: logits(run.foreign(name)) for name in recipe.data.ood}
    shifted = {name: run.foreign(name) for name in recipe.data.shift}
    shift = {name: (logits(foreign), foreign.labels) for name, foreign in shifted.items()}

    def judge(chosen: slice) -> dict[str, Any]:
        def answers(values: Logits) -> Answers:
            return Answers.of(values[:, chosen])

        held_out = answers(calibration)
        sets = fit_sets(recipe.prediction_sets, held_out, run.problem.calibration.labels)
        return evaluate(
            calibrate("predictive_entropy", held_out),
            sets.fitted if sets else None,
            run.policies,
            (answers(test), run.problem.test.labels),
            {name: answers(values) for name, values in ood.items()},
            {name: (answers(values), labels) for name, (values, labels) in shift.items()},
        )

    return over_members(len(positions), ensemble.together, judge)


def over_members(
    members: int, together: bool, judge: Callable[[slice], dict[str, Any]]
) -> dict[str, Any]:
    """Figures of all members together, or the mean over members of each one's own."""
    if together:
        return judge(slice(None))
    return _mean([judge(slice(member, member + 1)) for member in range(members)])


def member_logits(problem: Problem, positions: Tensor, dataset: Dataset) -> Logits:
    """Logits [n, M, K] of weight vectors [M, D] for the images of a data set."""
    images, _ = problem.tensors(dataset)
    return member_outputs(problem.network, 1, positions, images).logits


@torch.no_grad()
def member_outputs(network: Network, group: int, positions: Tensor, images: Tensor) -> Outputs:
    """Outputs of weight vectors [M, D] for n images, one member after the other, in torch.

    The features are those of the first `group` members.
    """
    logits: list[Tensor] = []
    features: list[Tensor] = []
    for position in positions:
        parameters = network.unflatten(position.unsqueeze(0))
        parts = [network.forward(parameters, batch) for batch in images.split(TOGETHER)]
        logits.append(torch.cat([part for part, _ in parts]))
        if len(features) < group:
            features.append(torch.cat([part for _, part in parts]))
    return Outputs(torch.cat(logits, dim=1).numpy(), torch.cat(features, dim=1).numpy())


def _mean(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Entry by entry mean of dictionaries of one shape; None where any entry is None."""

    def merge(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: merge([value[key] for value in values]) for key in values[0]}
        return None if None in values else float(np.mean(values))

    merged: dict[str, Any] = merge(results)
    return merged
