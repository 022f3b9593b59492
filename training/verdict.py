"""The sampler's verdict: temperature, agreement of the chains, and noise, from finished chains."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from models.manifest import Check, Verdict
from training.chains import OBSERVABLES, ChainResult, generator
from training.diagnostics import (
    Estimate,
    configurational_temperature,
    effective_sample_size,
    gradient_noise_ratio,
    split_rhat,
)
from training.posterior import minibatches
from training.problem import Problem

TEMPERATURE_WITHIN = 0.1
LAYER_TEMPERATURE_WITHIN = 0.2
MAX_RHAT = 1.10
MIN_ESS = 50
NOISE_BATCHES = 32
MAX_JSON = 1e6  # stands for infinity, which JSON has not


def diagnose(problem: Problem, results: list[ChainResult]) -> tuple[Verdict, dict[str, Any]]:
    """Measure the finished chains; returns the verdict and all figures, ready for JSON.

    Verified means: sampled at T = 1, measured T_conf within 0.1 of T overall and within 0.2 in
    every layer, split R-hat of validation NLL, accuracy and entropy at most 1.10, and at least 50
    effective draws of the NLL.
    """
    temperature = problem.recipe.sampler.temperature
    names = [layer.name for layer in problem.network.layers]
    weights = np.array([layer.size for layer in problem.network.layers], dtype=np.float64)
    virial = np.stack([result.virial for result in results])
    trace = np.stack([result.trace for result in results])
    overall, layers = configurational_temperature(virial, weights)
    rhat = {name: min(split_rhat(trace[:, :, i]), MAX_JSON) for i, name in enumerate(OBSERVABLES)}
    ess = {name: effective_sample_size(trace[:, :, i]) for i, name in enumerate(OBSERVABLES)}

    checks = {"asked_temperature": Check(value=temperature, low=1, high=1)}
    checks["temperature"] = _within(overall.value, temperature, TEMPERATURE_WITHIN)
    for name, layer in zip(names, layers, strict=True):
        checks[f"temperature.{name}"] = _within(layer.value, temperature, LAYER_TEMPERATURE_WITHIN)
    for name, value in rhat.items():
        checks[f"rhat.{name}"] = Check(value=round(value, 4), high=MAX_RHAT)
    checks["ess.nll"] = Check(value=round(ess["nll"], 1), low=MIN_ESS)
    figures = {
        "asked_temperature": temperature,
        "temperature": _figures(overall),
        "layers": {name: _figures(layer) for name, layer in zip(names, layers, strict=True)},
        "split_rhat": rhat,
        "effective_sample_size": ess,
        "gradient_noise_ratio": _noise(problem, results[0]) if temperature > 0 else None,
        "observables": {
            name: {
                "mean": float(trace[:, :, i].mean()),
                "chain_means": [float(mean) for mean in trace[:, :, i].mean(axis=1)],
            }
            for i, name in enumerate(OBSERVABLES)
        },
    }
    return Verdict(checks=checks), figures


def _within(value: float, target: float, share: float) -> Check:
    return Check(value=round(value, 4), low=target * (1 - share), high=target * (1 + share))


def _figures(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "standard_error": estimate.standard_error}


def _noise(problem: Problem, result: ChainResult) -> dict[str, float]:
    """Mean minibatch over injected noise per layer, at the last sample of a chain."""
    settings, posterior = problem.recipe.sampler, problem.posterior
    images, labels = problem.tensors(problem.train)
    position = torch.from_numpy(result.samples[-1].copy())
    batches = minibatches(len(labels), settings.batch_size, generator(problem.recipe.seed, 0, 0))
    gradients = [
        posterior.gradient(position, images[batch], labels[batch])[0]
        for _, batch in zip(range(NOISE_BATCHES), batches, strict=False)
    ]
    steps = len(labels) // settings.batch_size
    last = (settings.burn_in_epochs + settings.sampling_epochs) * steps
    ratio = gradient_noise_ratio(
        torch.stack(gradients).double().numpy(),
        settings.step_sizes(steps)(last),
        posterior.num_data,
        settings.temperature,
    )
    bounds = np.cumsum([layer.size for layer in problem.network.layers])[:-1]
    return {
        layer.name: float(part.mean())
        for layer, part in zip(problem.network.layers, np.split(ratio, bounds), strict=True)
    }
