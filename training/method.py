"""The sampler that a recipe asks for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from training.checkpoint import ChainError
from training.problem import Problem
from training.recipe import Sampler as Settings
from training.samplers.baoab import BAOAB
from training.samplers.constant_sgd import ConstantSGD
from training.samplers.protocol import Sampler
from training.samplers.psgld import PSGLD
from training.samplers.sghmc import SGHMC
from training.samplers.sgld import SGLD
from training.schedules import Schedule


def build(
    settings: Settings,
    num_data: int,
    step_size: Schedule,
    generator: torch.Generator,
    temperature: float,
    freeze_at: int,
) -> Sampler[Any]:
    """The recipe's sampler for one epoch.

    Args:
        settings: the recipe's sampler.
        num_data: N.
        step_size: η_t.
        generator: source of its noise.
        temperature: T; 0 in the exploration stage of a cycle.
        freeze_at: step from which a preconditioner is constant.
    """
    match settings.name:
        case "sgld":
            return SGLD(num_data, step_size, generator, temperature)
        case "psgld":
            return PSGLD(num_data, step_size, generator, freeze_at, temperature)
        case "sghmc":
            return SGHMC(num_data, step_size, generator, settings.momentum, temperature)
        case "baoab":
            return BAOAB(num_data, step_size, generator, settings.momentum, temperature)
        case "constant-sgd":
            return ConstantSGD(step_size)


def pace(settings: Settings) -> float:
    """How much faster the method moves than SGLD with the same η at high friction.

    Minibatch noise heats it by as much more: by pace · η N V / 2, V the variance of ∇Ū_B
    (derived in the modules of the samplers).
    """
    match settings.name:
        case "baoab":
            return (1 + settings.momentum) / (1 - settings.momentum)
        case "sghmc":
            return 2 / (1 - settings.momentum)
        case _:
            return 1.0


def step_scale(problem: Problem) -> Tensor:
    """sqrt(s) for every weight, [D]: the sampler walks in φ = θ / sqrt(s), s a constant of a layer.

    In these coordinates a step of size η moves layer l by a step of size s_l η: a constant
    preconditioner, which leaves the target as it is.

    Raises:
        ChainError: a factor is for no layer of the network.
    """
    factors = problem.recipe.sampler.layer_step
    names = [layer.name for layer in problem.network.layers]
    unknown = [name for name in factors if name not in names]
    if unknown:
        raise ChainError(f"layer_step names {', '.join(unknown)}: use {', '.join(names)}")
    return torch.cat(
        [
            torch.full((layer.size,), math.sqrt(factors.get(layer.name, 1.0)))
            for layer in problem.network.layers
        ]
    )
