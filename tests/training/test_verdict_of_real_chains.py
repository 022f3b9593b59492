"""The verdict on real chains that are wrong, and on some that are right."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from models.manifest import Verdict
from training.chains import advance, read_result
from training.checkpoint import path_of
from training.problem import Problem
from training.recipe import change
from training.verdict import diagnose

CHAINS = 4


def judge(problem: Problem, run: Path, step_size: float, **settings: Any) -> Verdict:
    """Four chains at a constant step, long enough to be at equilibrium if the step is right."""
    sampler = {
        "chains": CHAINS,
        "warm_start_epochs": 10,
        "burn_in_epochs": 60,
        "sampling_epochs": 100,
        "trace": 40,
        "schedule": {"kind": "constant", "step_size": step_size},
        **settings,
    }
    changed = dataclasses.replace(problem, recipe=change(problem.recipe, {"sampler": sampler}))
    for chain in range(CHAINS):
        advance(changed, chain, path_of(run, chain), lambda _: None, lambda: False)
    results = [read_result(run, chain, changed) for chain in range(CHAINS)]
    verdict, _ = diagnose(changed, results)
    print({name: check.value for name, check in verdict.checks.items()})
    return verdict


def test_a_step_of_the_right_length_has_its_temperature(problem: Problem, tmp_path: Path) -> None:
    verdict = judge(problem, tmp_path, 0.3, half_step_epochs=30)
    assert not {"temperature", "half_step.temperature"} & set(verdict.failed)


def test_a_step_that_is_too_short_is_seen_by_the_temperature(
    problem: Problem, tmp_path: Path
) -> None:
    """At η = 1e-3 chains hardly leave the maximum where they began."""
    verdict = judge(problem, tmp_path, 1e-3)
    assert "temperature" in verdict.failed
    assert verdict.checks["temperature"].value < 0.5


@pytest.mark.parametrize("temperature", [0.1, 6.0])
def test_another_temperature_is_measured_and_not_verified(
    problem: Problem, tmp_path: Path, temperature: float
) -> None:
    verdict = judge(problem, tmp_path, 0.3, temperature=temperature)
    assert "asked_temperature" in verdict.failed
    assert verdict.checks["temperature"].value == pytest.approx(temperature, rel=0.15)
