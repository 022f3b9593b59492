"""Markov chains, each a resumable unit.

A chain goes through phases: a warm start (`training.warm_start`), burn-in, sampling, and, if the
recipe asks for it, more steps of half the size, which must tell the same story. The randomness of
an epoch depends on the seed, the chain and the epoch alone, and a chain is saved after every epoch
(`training.checkpoint`). So a run that was stopped or killed at any moment continues to
bit-identical samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.checkpoint import PHASES, ChainError, ChainState, path_of, read, read_samples, write
from training.landscape import gradient_variance, largest_curvature
from training.method import build, pace, step_scale
from training.minibatches import Batch, learn, preferential, shuffled
from training.observables import Trace, log_probabilities
from training.plan import Plan
from training.posterior import squared_residuals
from training.problem import Problem
from training.samplers.protocol import Sampler, State, Target
from training.warm_start import descend, initial_weights

EVALUATED_TOGETHER = 1000
STABILITY_LIMIT = 2.0  # of η λ, along the direction of largest curvature λ


@dataclass(frozen=True)
class Progress:
    """One chain has finished `epoch` of `epochs` epochs; `nll` is its mean training loss, nats."""

    chain: int
    epoch: int
    epochs: int
    nll: float


@dataclass(frozen=True)
class Observed:
    """`training.observables.Trace` of one phase, as arrays."""

    observables: NDArray[np.float64]
    coordinates: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    virial: NDArray[np.float64]


@dataclass(frozen=True)
class ChainResult:
    """What diagnostics and export read of a finished chain.

    Attributes:
        warm: weights at the end of the warm start, [D].
        samples: kept weights, mapped from disk, [S, D].
        step_sizes: η at each of them, [S].
        noise_ratio: minibatch over injected noise per layer at the first sampling step, for SGLD
            with a step size and temperature of 1, [L].
        burn_in: what was observed in the burn-in phase.
        sampling: what was observed in the sampling phase.
        half_step: the same at half the step size.
    """

    warm: NDArray[np.float32]
    samples: NDArray[np.float32]
    step_sizes: NDArray[np.float64]
    noise_ratio: NDArray[np.float64]
    burn_in: Observed
    sampling: Observed
    half_step: Observed


def generator(*key: int) -> torch.Generator:
    """A torch generator seeded from integers, independent for different ones."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def advance(
    problem: Problem,
    chain: int,
    checkpoint: Path,
    report: Callable[[Progress], None],
    stopped: Callable[[], bool],
) -> bool:
    """Bring one chain to its end, from its checkpoint if there is one; False if it was stopped.

    Raises:
        ChainError: the checkpoint is unreadable, the step is beyond the stability limit, the loss
            is not finite, no sample was kept, or the chain cannot be saved.
    """
    plan, settings = Plan.of(problem), problem.recipe.sampler
    state = (
        read(checkpoint, problem.network.num_weights)
        if checkpoint.exists()
        else _start(problem, chain)
    )
    if state.epoch == plan.epochs:
        return True
    walk = _Walk(
        problem, plan, chain, problem.tensors(problem.train), problem.tensors(problem.validation)
    )
    while state.epoch < plan.epochs:
        if stopped():
            return False
        randomness = generator(problem.recipe.seed, chain, state.epoch + 1)
        samples: list[Tensor] = []
        if state.epoch < walk.first_epoch:
            state, nll = walk.warm_epoch(state, randomness)
        else:
            state, nll = walk.langevin_epoch(state, samples, randomness)
        if not (math.isfinite(nll) and state.sampler["position"].isfinite().all()):
            raise ChainError(
                f"chain {chain}: the loss or a weight is not finite in epoch {state.epoch}: "
                "take a shorter step"
            )
        state = write(checkpoint, state, samples)
        finished = plan.sample_at and state.epoch == plan.half_step_epoch
        if finished and len(state.checksums) == 0:
            noise = pace(settings) * plan.longest_step * state.noise_ratio.max().item()
            raise ChainError(
                f"chain {chain}: no sample was kept: minibatch noise is "
                f"{noise:.2g} of the injected noise at the "
                "longest sampling step, above max_noise_ratio: take shorter steps or larger batches"
            )
        report(Progress(chain, state.epoch, plan.epochs, nll))
    return True


def _start(problem: Problem, chain: int) -> ChainState:
    """The state before the first epoch."""
    network, randomness = problem.network, generator(problem.recipe.seed, chain, 0)
    layers = len(network.layers)
    if problem.recipe.sampler.starts_from_prior(chain):
        position = problem.posterior.prior.draw(randomness)
    else:
        position = initial_weights(network, randomness)
    traces = {
        phase: Trace.empty(len(problem.validation), network.num_classes, layers) for phase in PHASES
    }
    return ChainState(
        epoch=0,
        sampler={"position": position, "momentum": torch.zeros_like(position)},
        warm=position.clone(),
        residuals=torch.zeros(0),
        noise_ratio=torch.full((layers,), torch.nan),
        curvature=torch.tensor(torch.nan),
        checksums=torch.zeros(0, dtype=torch.int64),
        step_sizes=torch.zeros(0, dtype=torch.float64),
        traces=traces,
    )


@dataclass(frozen=True)
class _Walk:
    """One chain with its prepared data."""

    problem: Problem
    plan: Plan
    chain: int
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]

    @property
    def first_epoch(self) -> int:
        """The first epoch of Langevin steps: a chain that starts at a prior draw has no other."""
        from_prior = self.problem.recipe.sampler.starts_from_prior(self.chain)
        return 0 if from_prior else self.plan.warm_epochs

    def warm_epoch(
        self, state: ChainState, randomness: torch.Generator
    ) -> tuple[ChainState, float]:
        position, momentum = (state.sampler[name].clone() for name in ("position", "momentum"))
        nll = descend(self.problem, position, momentum, state.epoch, self.train, randomness)
        sampler = {"position": position, "momentum": momentum}
        state = replace(state, epoch=state.epoch + 1, sampler=sampler, warm=position.clone())
        return state, nll

    def langevin_epoch(
        self, state: ChainState, samples: list[Tensor], randomness: torch.Generator
    ) -> tuple[ChainState, float]:
        """One epoch of the sampler; appends the kept weights [D] to `samples`."""
        plan, posterior = self.plan, self.problem.posterior
        scale = step_scale(self.problem)
        sampler, explorer, current = self._samplers(state, scale, randomness)
        if state.epoch == self.first_epoch:
            state = replace(state, residuals=self._residuals(current.position * scale))
        if state.epoch == plan.sampling_epoch:
            state = self._probe(state, current.position * scale, scale)
        residuals = state.residuals.clone()
        phase = plan.phase(state.epoch)
        trace, step_sizes, losses = state.traces[phase], list[float](), list[float]()
        virial, steps = torch.zeros_like(current.position), 0
        for batch in self._batches(residuals, randomness):
            step, target = current.step, self._target(batch, scale, losses, residuals)
            if plan.samples_now(step):
                current, info = sampler.step(current, target)
                virial.add_(info.virial)
                steps += 1
            else:
                current, info = explorer.step(current, target)
            if step in plan.sample_at and self._quiet(state, info.step_size):
                samples.append(current.position * scale)
                step_sizes.append(info.step_size)
            if step in plan.trace_at:
                weights = current.position * scale
                seen = log_probabilities(posterior, weights, self.validation[0])
                trace = trace.add(seen, self.validation[1])
        if steps:
            mean = self._by_layer(virial) * posterior.num_data / steps
            trace = replace(trace, virial=torch.cat([trace.virial, mean[None]]))
        added = torch.tensor(step_sizes, dtype=torch.float64)
        state = replace(
            state,
            epoch=state.epoch + 1,
            sampler=_tensors(current),
            residuals=residuals,
            step_sizes=torch.cat([state.step_sizes, added]),
            traces={**state.traces, phase: trace},
        )
        return state, sum(losses) / plan.steps_per_epoch

    def _samplers(
        self, state: ChainState, scale: Tensor, randomness: torch.Generator
    ) -> tuple[Sampler[Any], Sampler[Any], State]:
        """The epoch's samplers, for steps that may be kept and for others, and where they begin."""
        settings, plan = self.problem.recipe.sampler, self.plan
        exploring = 0.0 if settings.explores_cold else settings.temperature
        sampler, explorer = (
            build(
                settings,
                self.problem.posterior.num_data,
                plan.step_size,
                randomness,
                temperature,
                plan.first_step(plan.sampling_epoch),
            )
            for temperature in (settings.temperature, exploring)
        )
        position = state.sampler["position"]
        current: State = sampler.init(position, plan.first_step(state.epoch))
        if state.epoch > self.first_epoch:
            return sampler, explorer, replace(current, **state.sampler)  # type: ignore[type-var]
        if self.first_epoch:
            self._curvature(position, scale)
        current.position.div_(scale)
        return sampler, explorer, current

    def _batches(self, residuals: Tensor, randomness: torch.Generator) -> Iterator[Batch]:
        """One epoch of minibatches, as the recipe draws them."""
        settings = self.problem.recipe.sampler
        if settings.minibatches == "preferential":
            return preferential(residuals, settings.batch_size, randomness)
        return shuffled(len(self.train[1]), settings.batch_size, randomness)

    def _residuals(self, position: Tensor) -> Tensor:
        """The q [N] of preferential minibatches at `position`; [0] if there are none."""
        if self.problem.recipe.sampler.minibatches == "shuffled":
            return torch.zeros(0)
        logits = [
            self.problem.posterior.logits(position, images)
            for images in self.train[0].split(EVALUATED_TOGETHER)
        ]
        return squared_residuals(torch.cat(logits), self.train[1])

    def _target(
        self, batch: Batch, scale: Tensor, losses: list[float], residuals: Tensor
    ) -> Target:
        """Ū_B, less the prior's part, and ∇Ū_B in the sampler's coordinates.

        Notes the loss, and what it saw of the batch's examples.
        """
        images, labels = self.train[0][batch.examples], self.train[1][batch.examples]

        def target(position: Tensor) -> tuple[Tensor, Tensor]:
            force, nll, seen = self.problem.posterior.weighted_gradient(
                position * scale, images, labels, batch.weights
            )
            losses.append(nll)
            if len(residuals):
                learn(residuals, batch, seen)
            return force.new_tensor(nll), force.mul_(scale)

        return target

    def _probe(self, state: ChainState, position: Tensor, scale: Tensor) -> ChainState:
        """Measure gradient noise and curvature at the first sampling step."""
        posterior = self.problem.posterior
        curvature = self._curvature(position, scale)
        randomness = generator(self.problem.recipe.seed, self.chain, 0, 1)
        batches = self._batches(state.residuals, randomness)
        variance = gradient_variance(posterior, position, *self.train, batches)
        sizes = torch.tensor(self.problem.network.layer_sizes)
        mean = self._by_layer(variance * scale.square()) / sizes
        ratio = mean * posterior.num_data / 2
        return replace(state, noise_ratio=ratio, curvature=torch.tensor(curvature))

    def _curvature(self, position: Tensor, scale: Tensor) -> float:
        """Largest curvature at `position`, in the sampler's coordinates.

        Raises:
            ChainError: the longest sampling step is beyond the stability limit there.
        """
        randomness = generator(self.problem.recipe.seed, self.chain, 0, 3)
        curvature = largest_curvature(
            self.problem.posterior, position, *self.train, scale, randomness
        )
        step_size = self.plan.longest_step
        if step_size * curvature >= STABILITY_LIMIT:
            raise ChainError(
                f"chain {self.chain}: step size {step_size:g} is beyond the stability limit "
                f"2/λ = {STABILITY_LIMIT / curvature:.2g}: take a shorter step"
            )
        return curvature

    def _quiet(self, state: ChainState, step_size: float) -> bool:
        """Whether gradient noise is small enough beside the injected noise to keep a sample."""
        settings = self.problem.recipe.sampler
        if settings.max_noise_ratio is None:
            return True
        noise = pace(settings) * step_size * state.noise_ratio.max().item()
        return noise <= settings.max_noise_ratio * settings.temperature

    def _by_layer(self, values: Tensor) -> Tensor:
        """Sum of values [D] over each layer, [L], in double precision."""
        parts = values.double().split(self.problem.network.layer_sizes)
        return torch.stack([part.sum() for part in parts])


def _tensors(state: Any) -> dict[str, Tensor]:
    """What a sampler's state holds beside the step's index."""
    values = {item.name: getattr(state, item.name) for item in fields(state)}
    return {name: value for name, value in values.items() if name != "step"}


def read_result(run: Path, chain: int, problem: Problem) -> ChainResult:
    """Read a finished chain.

    Raises:
        ChainError: it is missing, unreadable or unfinished.
    """
    file = path_of(run, chain)
    if not file.exists():
        raise ChainError(f"{file}: chain {chain} has not been run: run the sample stage first")
    state = read(file, problem.network.num_weights)
    if state.epoch < Plan.of(problem).epochs:
        raise ChainError(f"{file}: chain {chain} is unfinished: run the sample stage to resume it")
    empty = np.empty((0, problem.network.num_weights), np.float32)
    return ChainResult(
        warm=state.warm.numpy(),
        samples=read_samples(file, state) if len(state.checksums) else empty,
        step_sizes=state.step_sizes.numpy(),
        noise_ratio=state.noise_ratio.numpy(),
        burn_in=_arrays(state.traces["burn_in"]),
        sampling=_arrays(state.traces["sampling"]),
        half_step=_arrays(state.traces["half_step"]),
    )


def _arrays(trace: Trace) -> Observed:
    arrays: dict[str, Any] = {
        item.name: getattr(trace, item.name).numpy() for item in fields(trace)
    }
    return Observed(**arrays)
