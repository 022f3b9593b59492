"""The sampler's verdict: is this the posterior, and does every chain say so?

Checks, each with its reason to be (`docs/training.md`):

    asked_temperature   T = 1: Bayes
    chains              at least 4
    temperature         T_conf = ⟨θ·∇U⟩/D within 0.1 of T, and within 0.2 in every layer: the only
                        check that sees a step which is too long, or weights that have not yet
                        spread to where the posterior is
    rhat                split R-hat of NLL, accuracy and entropy on validation images ≤ 1.10
    ess                 bulk effective sample size of the NLL ≥ 50, over all chains
    drift               |z| < 3 between the halves of the sampling phase
    starts              chains from prior draws against chains from a warm start: total variation of
                        their predictives ≤ 1.5 × that of two mixed halves, + 0.01
    half_step           half the step size: the same bound; T_conf again within 0.1; and the NLL of
                        single weight vectors within 5 % and 2 standard errors, which sees the few
                        stiff directions that minibatch noise heats, and T_conf does not
    accuracy            of the mean prediction, at most 3 points below the warm starts'

R-hat alone proves nothing: chains that stand still at one place agree, and so do those that are all
too hot.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.manifest import Check, Verdict
from training import metrics
from training.agreement import agreement, total_variation
from training.chains import ChainResult
from training.diagnostics import (
    Estimate,
    bulk_effective_sample_size,
    configurational_temperature,
    drift,
    mixing,
    relaxation,
    split_rhat,
)
from training.method import pace
from training.observables import OBSERVABLES, log_probabilities
from training.plan import Plan
from training.problem import Problem

MIN_CHAINS = 4
TEMPERATURE_WITHIN = 0.1
LAYER_TEMPERATURE_WITHIN = 0.2
NLL_WITHIN = 0.05
MAX_RHAT = 1.10
MIN_ESS = 50
MAX_DRIFT = 3.0
MIN_DRIFT_POINTS = 8
ACCURACY_LOSS = 0.03
WINDOW = 32  # trace points of a relaxation window, over all chains
MAX_JSON = 1e6  # stands for infinity, which JSON has not

Array = NDArray[np.float64]


def diagnose(problem: Problem, results: list[ChainResult]) -> tuple[Verdict, dict[str, Any]]:
    """Measure the finished chains; returns the verdict and all figures, ready for JSON."""
    settings = problem.recipe.sampler
    temperature = settings.temperature
    trace = np.stack([result.sampling.observables for result in results])
    overall, layers = _temperature(problem, [result.sampling.virial for result in results])
    step_size = Plan.of(problem).longest_step

    checks = {
        "asked_temperature": Check(value=temperature, low=1, high=1),
        "chains": Check(value=len(results), low=MIN_CHAINS),
        "temperature": _within(overall.value, temperature, TEMPERATURE_WITHIN),
    }
    for name, layer in layers.items():
        checks[f"temperature.{name}"] = _within(layer.value, temperature, LAYER_TEMPERATURE_WITHIN)
    figures: dict[str, Any] = {
        "asked_temperature": temperature,
        "step_size": step_size,
        "temperature": _figures(overall),
        "layers": {name: _figures(layer) for name, layer in layers.items()},
        "gradient_noise_ratio": _noise(problem, results, step_size),
        "split_rhat": {},
        "effective_sample_size": {},
        "drift": {},
        "observables": {},
        "coordinates": _coordinates(results),
        "relaxation": _relaxation(problem, results),
    }
    for index, name in enumerate(OBSERVABLES):
        draws = trace[:, :, index]
        figures["split_rhat"][name] = min(split_rhat(draws), MAX_JSON)
        figures["effective_sample_size"][name] = bulk_effective_sample_size(draws)
        if draws.shape[1] >= MIN_DRIFT_POINTS:
            figures["drift"][name] = float(np.clip(drift(draws), -MAX_JSON, MAX_JSON))
        figures["observables"][name] = {
            "mean": float(draws.mean()),
            "chain_means": [float(mean) for mean in draws.mean(axis=1)],
        }
        checks[f"rhat.{name}"] = Check(value=round(figures["split_rhat"][name], 4), high=MAX_RHAT)
    ess = figures["effective_sample_size"]["nll"]
    checks["ess.nll"] = Check(value=round(ess, 1), low=MIN_ESS)
    for name, z in figures["drift"].items():
        checks[f"drift.{name}"] = Check(value=round(z, 2), low=-MAX_DRIFT, high=MAX_DRIFT)
    predictives = np.stack([result.sampling.probabilities for result in results])
    checks |= _agreement(problem, results, predictives, figures)
    if settings.warm_start_epochs:
        warm = _warm_accuracy(problem, results)
        accuracy = metrics.accuracy(predictives.mean(axis=0), problem.validation.labels)
        figures["warm_start_accuracy"] = warm
        checks["accuracy"] = Check(value=round(accuracy, 4), low=round(warm - ACCURACY_LOSS, 4))
    return Verdict(checks=checks), figures


def _temperature(problem: Problem, virial: list[Array]) -> tuple[Estimate, dict[str, Estimate]]:
    network = problem.network
    overall, layers = configurational_temperature(virial, network.layer_sizes)
    return overall, {layer.name: value for layer, value in zip(network.layers, layers, strict=True)}


def _agreement(
    problem: Problem, results: list[ChainResult], predictives: Array, figures: dict[str, Any]
) -> dict[str, Check]:
    """Starts and step sizes compared: predictives [C, n, K] of chains on validation images."""
    settings = problem.recipe.sampler
    count = len(results)
    if count < MIN_CHAINS:
        return {}
    floor = _floor(predictives)
    limit = round(1.5 * floor + 0.01, 4)
    figures["halves"] = {"total_variation": floor}
    checks: dict[str, Check] = {}
    from_prior = np.array([settings.starts_from_prior(chain) for chain in range(count)])
    if from_prior.any():
        parts = predictives[from_prior].mean(axis=0), predictives[~from_prior].mean(axis=0)
        figures["starts"] = _compare(*parts)
        checks["starts"] = Check(value=round(figures["starts"]["total_variation"], 4), high=limit)
    if settings.half_step_epochs:
        halved = np.mean([result.half_step.probabilities for result in results], axis=0)
        overall, _ = _temperature(problem, [result.half_step.virial for result in results])
        change = _nll_change(results)
        figures["half_step"] = {
            **_compare(predictives.mean(axis=0), halved),
            "temperature": _figures(overall),
            "nll_change": _figures(change),
        }
        checks["half_step"] = Check(
            value=round(figures["half_step"]["total_variation"], 4), high=limit
        )
        within = round(NLL_WITHIN + 2 * change.standard_error, 4)
        checks["half_step.nll"] = Check(value=round(change.value, 4), low=-within, high=within)
        checks["half_step.temperature"] = _within(
            overall.value, settings.temperature, TEMPERATURE_WITHIN
        )
    return checks


def _nll_change(results: list[ChainResult]) -> Estimate:
    """Relative change of the NLL of single weight vectors at half the step, over the chains."""
    full = np.array([result.sampling.observables[:, 0].mean() for result in results])
    half = np.array([result.half_step.observables[:, 0].mean() for result in results])
    change = (half - full) / full.mean()
    return Estimate(float(change.mean()), float(change.std(ddof=1) / np.sqrt(len(results))))


def _floor(predictives: Array) -> float:
    """Mean total variation between two halves of the chains, each with both kinds of start.

    Chains come in neighbouring pairs of a warm start and a prior start; halves are made of pairs.
    """
    pairs = np.arange(len(predictives)) // 2
    apart = [
        total_variation(predictives[chosen].mean(axis=0), predictives[~chosen].mean(axis=0))
        for chosen in (pairs % 2 == 0, pairs < (pairs.max() + 1) // 2)
    ]
    return float(np.mean(apart))


def _compare(first: Array, second: Array) -> dict[str, float]:
    return {
        "total_variation": float(total_variation(first, second)),
        "agreement": float(agreement(first, second)),
    }


def _coordinates(results: list[ChainResult]) -> dict[str, list[float]]:
    """R-hat and effective draws of random predictive coordinates, told but not required.

    Chains in different modes of weight space disagree on single images for longer than on means.
    """
    mixed = mixing(np.stack([result.sampling.coordinates for result in results]))
    return {"rhat": np.minimum(mixed.rhat, MAX_JSON).tolist(), "ess": mixed.ess.tolist()}


def _relaxation(problem: Problem, results: list[ChainResult]) -> dict[str, Any] | None:
    """How the observables forget the start: windows of the trace against its last part."""
    sampling = np.stack([result.sampling.observables for result in results])
    burn_in = np.stack([result.burn_in.observables for result in results])
    whole = np.concatenate([burn_in, sampling], axis=1)
    width, final = max(2, WINDOW // len(results)), sampling.shape[1] // 2
    if final < width or whole.shape[1] - final < 2 * width:
        return None
    curves = {
        name: relaxation(whole[:, :, index], width, final) for index, name in enumerate(OBSERVABLES)
    }
    settings = problem.recipe.sampler
    return {
        "epochs_per_point": settings.sampling_epochs / settings.trace,
        "curves": {
            name: {
                "starts": list(curve.starts),
                "kl": [min(value, MAX_JSON) for value in curve.kl],
                "burn_in": curve.burn_in,
            }
            for name, curve in curves.items()
        },
    }


def _noise(
    problem: Problem, results: list[ChainResult], step_size: float
) -> dict[str, float] | None:
    """Mean minibatch over injected noise per layer, at the longest sampling step."""
    settings = problem.recipe.sampler
    if settings.temperature == 0:
        return None
    heat = pace(settings) * step_size / settings.temperature
    ratio = heat * np.mean([result.noise_ratio for result in results], axis=0)
    return {
        layer.name: float(value) for layer, value in zip(problem.network.layers, ratio, strict=True)
    }


def _warm_accuracy(problem: Problem, results: list[ChainResult]) -> float:
    """Mean accuracy of the chains' warm starts on the validation images."""
    images, labels = problem.tensors(problem.validation)
    starts_from_prior = problem.recipe.sampler.starts_from_prior
    return float(
        np.mean(
            [
                log_probabilities(problem.posterior, torch.from_numpy(result.warm), images)
                .argmax(1)
                .eq(labels)
                .double()
                .mean()
                for chain, result in enumerate(results)
                if not starts_from_prior(chain)
            ]
        )
    )


def _within(value: float, target: float, share: float) -> Check:
    return Check(value=round(value, 4), low=target * (1 - share), high=target * (1 + share))


def _figures(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "standard_error": estimate.standard_error}
