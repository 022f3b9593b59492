from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.baselines import MethodError, fit, judge, run_baselines
from training.problem import Problem
from training.recipe import Recipe, change
from training.run import Run


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
    networks = fit("ensemble-3", run, 1, lambda step: None).positions
    assert len(np.unique(networks[:, 0])) == 3


@pytest.mark.usefixtures("in_process")
def test_methods_by_name(tiny: Recipe, tmp_path: Path) -> None:
    run = Run.create(tiny, tmp_path, tmp_path)
    results = run_baselines(run, 2, 1, lambda step: None, ["laplace", "langevin-1"])
    assert list(results) == ["last-layer Laplace, M = 32", "Langevin, T = 1, M = 4"]
    assert all(figures["test"]["mutual_information"] > 0 for figures in results.values())


@pytest.mark.parametrize("group", [1, 3, 6])
def test_outputs_are_those_of_all_members_at_once_with_features_of_the_first(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    """In torch, batch by batch, as the graph gives them."""
    monkeypatch.setattr(judge, "TOGETHER", 7)
    images, _ = problem.tensors(problem.validation)
    generator = torch.Generator().manual_seed(14)
    positions = torch.randn(6, problem.network.num_weights, generator=generator) / 3
    outputs = judge.member_outputs(problem.network, group, positions, images[:20])
    logits, features = problem.network.forward(problem.network.unflatten(positions), images[:20])
    assert outputs.logits == pytest.approx(logits.numpy(), abs=1e-5)
    assert outputs.features.shape == (20, group, 32)
    assert outputs.features == pytest.approx(features[:, :group].numpy(), abs=1e-5)


def test_an_unknown_method_is_refused_before_anything_is_trained(
    tiny: Recipe, tmp_path: Path
) -> None:
    run = Run.create(tiny, tmp_path, tmp_path)
    with pytest.raises(MethodError):
        run_baselines(run, 2, 1, lambda step: None, ["map-2", "svi"])
    assert not (run.path / "baselines").exists()
