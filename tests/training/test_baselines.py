from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training.baselines import deep_ensemble, run_baselines
from training.pool import run_all
from training.recipe import Recipe, change
from training.run import Run


@pytest.mark.parametrize(("members", "epochs"), [(2, 8), (4, 4), (16, 1), (99, 1)])
def test_costs_as_many_epochs_as_the_chains(tiny: Recipe, members: int, epochs: int) -> None:
    """The tiny recipe has 2 chains of 8 epochs."""
    sampler = deep_ensemble(tiny, members).sampler
    assert (sampler.chains, sampler.warm_start_epochs) == (members, epochs)
    assert sampler.burn_in_epochs == sampler.sampling_epochs == 0


def test_networks_are_trained_and_judged_alike(tiny: Recipe, tmp_path: Path) -> None:
    run = Run.create(change(tiny, {"sampler": {"warm_start_epochs": 8}}), tmp_path, tmp_path)
    results = run_baselines(run, 3, 1, lambda step: None)
    single, ensemble = results["MAP, mean of 3"]["test"], results["deep ensemble, M = 3"]["test"]
    assert json.loads((tmp_path / "baselines.json").read_text()) == results
    assert single["accuracy"] == pytest.approx(single["member_accuracy"])
    assert single["mutual_information"] == 0
    assert ensemble["member_accuracy"] == pytest.approx(single["member_accuracy"])
    assert ensemble["nll"] < single["nll"]
    assert ensemble["mutual_information"] > 0
    networks = np.stack([result.warm for result in _ensemble(run).results])
    assert len(np.unique(networks[:, 0])) == 3


def _ensemble(run: Run) -> Run:
    return Run.open(run.path / "baselines", run.data_dir)


def test_run_all_resumes_what_is_there(tiny: Recipe, tmp_path: Path) -> None:
    recipe = deep_ensemble(tiny, 2)
    steps: list[int] = []
    for _ in range(2):
        run_all(recipe, tmp_path, tmp_path, 1, lambda step: steps.append(step.epoch))
    assert len(steps) == 2 * recipe.sampler.warm_start_epochs
