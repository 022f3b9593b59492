"""The verdict, on chains whose every figure is known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from training.chains import ChainResult, Observed
from training.problem import Problem
from training.recipe import change
from training.verdict import diagnose

LAYERS = ("dense1", "dense2")


def with_sampler(problem: Problem, **settings: Any) -> Problem:
    return replace(problem, recipe=change(problem.recipe, {"sampler": settings}))


def observed(problem: Problem, seed: int, points: int = 100) -> Observed:
    """Independent draws, at a temperature of 1 in every layer, around one predictive."""
    randomness = np.random.default_rng(seed)
    sizes = np.array([layer.size for layer in problem.network.layers], dtype=float)
    images, classes = len(problem.validation), problem.network.num_classes
    predictive = np.random.default_rng(0).dirichlet(np.full(classes, 0.1), images)
    noise = randomness.dirichlet(np.ones(classes), images)
    return Observed(
        observables=randomness.normal(1, 0.1, (points, 3)),
        coordinates=randomness.normal(-3, 1, (points, 32)),
        probabilities=0.95 * predictive + 0.05 * noise,
        virial=sizes * randomness.normal(1, 0.02, (points, 2)),
    )


@pytest.fixture
def results(problem: Problem) -> list[ChainResult]:
    """Four chains at equilibrium."""
    weights = problem.network.num_weights
    randomness = np.random.default_rng(0)
    return [
        ChainResult(
            warm=np.zeros(weights, np.float32),
            samples=randomness.normal(0, 0.1, (2, weights)).astype(np.float32),
            step_sizes=np.full(2, 0.1),
            noise_ratio=np.full(2, 0.3),
            burn_in=observed(problem, 100 + chain),
            sampling=observed(problem, chain),
            half_step=observed(problem, 200 + chain),
        )
        for chain in range(4)
    ]


def test_chains_at_equilibrium_pass(problem: Problem, results: list[ChainResult]) -> None:
    thorough = with_sampler(problem, chains=4, prior_starts=2, half_step_epochs=1)
    verdict, figures = diagnose(thorough, results)
    assert verdict.verified
    assert list(verdict.checks) == [
        "asked_temperature",
        "chains",
        "temperature",
        *(f"temperature.{name}" for name in LAYERS),
        "rhat.nll",
        "rhat.accuracy",
        "rhat.entropy",
        "ess.nll",
        "drift.nll",
        "drift.accuracy",
        "drift.entropy",
        "starts",
        "half_step",
        "half_step.nll",
        "half_step.temperature",
        "accuracy",
    ]
    assert figures["temperature"]["value"] == pytest.approx(1, abs=0.01)
    assert list(figures["layers"]) == list(figures["gradient_noise_ratio"]) == list(LAYERS)
    assert figures["gradient_noise_ratio"]["dense1"] == pytest.approx(0.3 * 0.1)
    underdamped = with_sampler(thorough, name="baoab", momentum=0.9)
    _, figures_underdamped = diagnose(underdamped, results)
    assert figures_underdamped["gradient_noise_ratio"]["dense1"] == pytest.approx(19 * 0.3 * 0.1)
    assert len(figures["observables"]["nll"]["chain_means"]) == 4
    assert np.median(figures["coordinates"]["rhat"]) == pytest.approx(1, abs=0.05)
    assert list(figures["relaxation"]["curves"]) == ["nll", "accuracy", "entropy"]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_checks_that_were_not_asked_for_are_absent(
    problem: Problem, results: list[ChainResult]
) -> None:
    verdict, _ = diagnose(problem, results)
    assert verdict.verified
    assert not {"starts", "half_step"} & set(verdict.checks)


def test_three_chains_are_too_few(problem: Problem, results: list[ChainResult]) -> None:
    assert diagnose(problem, results[:3])[0].failed == ("chains",)


def test_chains_that_remember_where_they_began(
    problem: Problem, results: list[ChainResult]
) -> None:
    started = with_sampler(problem, chains=4, prior_starts=2)
    for result in results[1::2]:
        result.sampling.probabilities[:] = np.roll(result.sampling.probabilities, 1, axis=1)
    assert diagnose(started, results)[0].failed == ("starts",)


def test_half_the_step_size_tells_another_story(
    problem: Problem, results: list[ChainResult]
) -> None:
    halved = with_sampler(problem, chains=4, half_step_epochs=1)
    for result in results:
        result.half_step.probabilities[:] = np.roll(result.half_step.probabilities, 1, axis=1)
        result.half_step.virial[:] *= 0.8
        result.half_step.observables[:, 0] *= 0.8
    assert diagnose(halved, results)[0].failed == (
        "half_step",
        "half_step.nll",
        "half_step.temperature",
    )


def test_mean_prediction_that_is_far_worse_than_the_warm_start(
    problem: Problem, results: list[ChainResult]
) -> None:
    """Warm starts that are all zero are right for one class in ten."""
    labels = problem.validation.labels
    for result in results:
        result.sampling.probabilities[:] = np.eye(10)[(labels + 1) % 10]
    assert diagnose(problem, results)[0].failed == ("accuracy",)


def test_trend_common_to_all_chains(problem: Problem, results: list[ChainResult]) -> None:
    for result in results:
        result.sampling.observables[:, 2] += np.linspace(0, 0.1, 100)
    assert "drift.entropy" in diagnose(problem, results)[0].failed


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
        result.sampling.virial[:, layer] *= factor
    assert diagnose(problem, results)[0].failed == failed


@pytest.mark.parametrize(("index", "name"), [(0, "nll"), (1, "accuracy"), (2, "entropy")])
def test_chain_that_tells_another_story(
    problem: Problem, results: list[ChainResult], index: int, name: str
) -> None:
    results[2].sampling.observables[:, index] += 0.3
    assert f"rhat.{name}" in diagnose(problem, results)[0].failed


def test_too_few_effective_draws(problem: Problem, results: list[ChainResult]) -> None:
    slow = [
        replace(result, sampling=observed(problem, 5 + i, 10)) for i, result in enumerate(results)
    ]
    assert "ess.nll" in diagnose(problem, slow)[0].failed


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_cold_posterior_is_not_verified(
    problem: Problem, results: list[ChainResult], temperature: float
) -> None:
    cold = with_sampler(problem, temperature=temperature)
    for result in results:
        result.sampling.virial[:] *= temperature
    assert diagnose(cold, results)[0].failed == ("asked_temperature",)


def test_chains_that_stand_still_apart(problem: Problem, results: list[ChainResult]) -> None:
    for chain, result in enumerate(results):
        result.sampling.observables[:, 1] = chain
    verdict, figures = diagnose(problem, results)
    assert "rhat.accuracy" in verdict.failed
    assert json.dumps(figures, allow_nan=False)
