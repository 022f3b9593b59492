"""The verdict, on chains whose every figure is known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from training.chains import ChainResult
from training.problem import Problem
from training.recipe import change
from training.verdict import diagnose

LAYERS = ("dense1", "dense2")


@pytest.fixture
def results(problem: Problem) -> list[ChainResult]:
    """Four chains of independent draws, at a temperature of 1 in every layer."""
    randomness = np.random.default_rng(0)
    sizes = np.array([layer.size for layer in problem.network.layers], dtype=float)
    weights = problem.network.num_weights
    return [
        ChainResult(
            warm=np.zeros(weights, np.float32),
            samples=randomness.normal(0, 0.1, (2, weights)).astype(np.float32),
            trace=randomness.normal(1, 0.1, (100, 3)),
            virial=sizes * randomness.normal(1, 0.02, (100, 2)),
        )
        for _ in range(4)
    ]


def test_chains_at_equilibrium_pass(problem: Problem, results: list[ChainResult]) -> None:
    verdict, figures = diagnose(problem, results)
    assert verdict.verified
    assert list(verdict.checks) == [
        "asked_temperature",
        "temperature",
        *(f"temperature.{name}" for name in LAYERS),
        "rhat.nll",
        "rhat.accuracy",
        "rhat.entropy",
        "ess.nll",
    ]
    assert figures["temperature"]["value"] == pytest.approx(1, abs=0.01)
    assert list(figures["layers"]) == list(figures["gradient_noise_ratio"]) == list(LAYERS)
    assert len(figures["observables"]["nll"]["chain_means"]) == 4
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


@pytest.mark.parametrize(
    ("layer", "factor", "failed"),
    [
        (0, 1.25, ("temperature", "temperature.dense1")),
        (1, 1.25, ("temperature.dense2",)),
        (1, 0.75, ("temperature.dense2",)),
        (1, 1.15, ()),
    ],
)
def test_hot_or_cold_layer(
    problem: Problem, results: list[ChainResult], layer: int, factor: float, failed: tuple[str, ...]
) -> None:
    for result in results:
        result.virial[:, layer] *= factor
    assert diagnose(problem, results)[0].failed == failed


@pytest.mark.parametrize(("index", "name"), [(0, "nll"), (1, "accuracy"), (2, "entropy")])
def test_chain_that_tells_another_story(
    problem: Problem, results: list[ChainResult], index: int, name: str
) -> None:
    results[2].trace[:, index] += 0.3
    assert f"rhat.{name}" in diagnose(problem, results)[0].failed


def test_too_few_effective_draws(problem: Problem, results: list[ChainResult]) -> None:
    slow = [replace(result, trace=result.trace[:10]) for result in results]
    assert "ess.nll" in diagnose(problem, slow)[0].failed


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_cold_posterior_is_not_verified(
    problem: Problem, results: list[ChainResult], temperature: float
) -> None:
    cold = replace(
        problem, recipe=change(problem.recipe, {"sampler": {"temperature": temperature}})
    )
    scaled = [replace(result, virial=temperature * result.virial) for result in results]
    assert diagnose(cold, scaled)[0].failed == ("asked_temperature",)


def test_chains_that_stand_still_apart(problem: Problem, results: list[ChainResult]) -> None:
    for chain, result in enumerate(results):
        result.trace[:, 1] = chain
    verdict, figures = diagnose(problem, results)
    assert "rhat.accuracy" in verdict.failed
    assert json.dumps(figures, allow_nan=False)
