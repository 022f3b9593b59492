"""One full-batch HMC chain of a problem: the reference that a sampler is compared with.

The chain walks in z = θ/σ, where the prior has unit scale: a fixed preconditioner, which leaves
the law as it is. It starts after a short descent from He's initialisation. During burn-in the
leapfrog step is tuned to an acceptance of 0.9; then it is fixed, with trajectories of one length
but for their jitter.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.chains import generator
from training.checkpoint import ChainError
from training.observables import Trace, log_probabilities
from training.problem import Problem
from training.samplers.hmc import HMC
from training.schedules import constant
from training.warm_start import initial_weights

BURN_IN = 60
DESCENT, DESCENT_STEP = 200, 0.02
LENGTH = 1.5  # h L in prior standard deviations: about a quarter of the prior's period
MAX_LEAPFROG_STEPS = 100
ACCEPTANCE = 0.9
KEY = 1 << 20  # apart from the chains of any recipe


@dataclass(frozen=True)
class ReferenceChain:
    """A finished chain.

    Attributes:
        samples: weights at every iteration after burn-in, [S, D].
        observables: validation NLL (nats), accuracy and entropy (nats) there, [S, 3].
        energy: U there, nats, [S].
        virial: N θ∘∇Ū summed over each layer there, [S, L].
        acceptance: probability of acceptance of each iteration, [S].
        size: h, in prior standard deviations, [].
        leapfrog_steps: L, [].
    """

    samples: NDArray[np.float32]
    observables: NDArray[np.float64]
    energy: NDArray[np.float64]
    virial: NDArray[np.float64]
    acceptance: NDArray[np.float64]
    size: NDArray[np.float64]
    leapfrog_steps: NDArray[np.int64]


def run(
    problem: Problem,
    chain: int,
    draws: int,
    report: Callable[[int, int], None],
    stopped: Callable[[], bool],
) -> ReferenceChain | None:
    """Run one chain for `draws` samples; None if it was stopped.

    Args:
        problem: small enough for hundreds of thousands of full-batch gradients.
        chain: its number; with the recipe's seed it decides all randomness.
        draws: samples kept, S.
        report: called with iterations done and their number.
        stopped: asked before every iteration.

    Raises:
        ChainError: the descent to its start diverged.
    """
    posterior, temperature = problem.posterior, problem.recipe.sampler.temperature
    images, labels = problem.tensors(problem.train)
    seen, truth = problem.tensors(problem.validation)
    scale = posterior.prior.std
    randomness = generator(problem.recipe.seed, KEY, chain)
    exact = posterior.target(images, labels)

    def target(z: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = exact(z * scale)
        return energy, gradient.mul_(scale)

    start = initial_weights(problem.network, randomness) / scale
    for _ in range(DESCENT):
        start.sub_(target(start)[1], alpha=DESCENT_STEP / scale.square().mean().item())
    if not start.isfinite().all():
        raise ChainError(f"HMC chain {chain}: the descent to its start diverged")
    tuning = _Tuning()
    sampler = tuning.sampler(posterior.num_data, randomness, temperature)
    state = sampler.init(start)
    samples: list[Tensor] = []
    energies: list[float] = []
    acceptances: list[float] = []
    virials: list[Tensor] = []
    sizes = problem.network.layer_sizes
    trace = Trace.empty(len(truth), problem.network.num_classes, len(sizes))
    total = BURN_IN + draws
    for iteration in range(total):
        if stopped():
            return None
        state, info = sampler.step(state, target)
        assert info.acceptance is not None
        assert state.energy is not None
        assert state.gradient is not None
        if iteration < BURN_IN:
            tuning = tuning.after(info.acceptance.item(), final=iteration == BURN_IN - 1)
            sampler = tuning.sampler(posterior.num_data, randomness, temperature)
        else:
            weights = state.position * scale
            virial = (state.position * state.gradient).double() * posterior.num_data
            virials.append(torch.stack([part.sum() for part in virial.split(sizes)]))
            energies.append(state.energy.item() * posterior.num_data)
            acceptances.append(info.acceptance.item())
            trace = trace.add(log_probabilities(posterior, weights, seen), truth)
            samples.append(weights)
        report(iteration + 1, total)
    return ReferenceChain(
        samples=torch.stack(samples).numpy(),
        observables=trace.observables.numpy(),
        energy=np.array(energies),
        virial=torch.stack(virials).numpy(),
        acceptance=np.array(acceptances),
        size=np.array(tuning.size),
        leapfrog_steps=np.array(tuning.leapfrog_steps),
    )


@dataclass(frozen=True)
class _Tuning:
    """Robbins-Monro on log h: up where more than the target is accepted, down where less."""

    size: float = 0.01
    iteration: int = 0
    past: tuple[float, ...] = ()

    @property
    def leapfrog_steps(self) -> int:
        return min(math.ceil(LENGTH / self.size), MAX_LEAPFROG_STEPS)

    def sampler(self, num_data: int, randomness: torch.Generator, temperature: float) -> HMC:
        step_size = num_data * self.size**2 / 2
        return HMC(num_data, constant(step_size), randomness, self.leapfrog_steps, temperature)

    def after(self, acceptance: float, *, final: bool) -> _Tuning:
        """The next size; the final one is the geometric mean over the second half."""
        gain = (acceptance - ACCEPTANCE) / math.sqrt(self.iteration + 1)
        size = self.size * math.exp(gain)
        past = (*self.past, size)
        if final:
            size = math.exp(
                sum(map(math.log, past[len(past) // 2 :])) / (len(past) - len(past) // 2)
            )
        return _Tuning(size, self.iteration + 1, past)


def save(file: Path, chain: ReferenceChain) -> None:
    """Write a chain to an .npz file, atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    arrays: dict[str, Any] = {item.name: getattr(chain, item.name) for item in fields(chain)}
    with temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    os.replace(temporary, file)


def read(file: Path) -> ReferenceChain:
    """Read a chain.

    Raises:
        ChainError: the file is not one.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            return ReferenceChain(
                **{item.name: archive[item.name] for item in fields(ReferenceChain)}
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ChainError(
            f"{file}: not a readable chain ({error}): delete it to run it anew"
        ) from error
