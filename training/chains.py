"""Markov chains, each a resumable unit.

The randomness of an epoch depends on the seed, the chain and the epoch alone, and a chain is saved
after every epoch, atomically. So a run that was stopped or killed at any moment continues to
bit-identical samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.checkpoint import ChainError, ChainState, path_of, read, write
from training.posterior import minibatches
from training.problem import Problem
from training.samplers.sgld import SGLD

MOMENTUM = 0.9
OBSERVABLES = ("nll", "accuracy", "entropy")


@dataclass(frozen=True)
class Progress:
    """One chain has finished `epoch` of `epochs` epochs; `nll` is its mean training loss, nats."""

    chain: int
    epoch: int
    epochs: int
    nll: float


@dataclass(frozen=True)
class ChainResult:
    """What diagnostics and export read of a finished chain; fields as in `ChainState`."""

    warm: NDArray[np.float32]
    samples: NDArray[np.float32]
    trace: NDArray[np.float64]
    virial: NDArray[np.float64]


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
        ChainError: the checkpoint is unreadable, the loss is not finite, or it cannot be saved.
    """
    plan = _Plan.of(problem)
    state = (
        read(checkpoint, problem.network.num_weights)
        if checkpoint.exists()
        else _start(problem, chain)
    )
    images, labels = problem.tensors(problem.train)
    validation = problem.tensors(problem.validation)
    while state.epoch < plan.epochs:
        if stopped():
            return False
        randomness = generator(problem.recipe.seed, chain, state.epoch + 1)
        if state.epoch < plan.warm_epochs:
            state, nll = _warm_epoch(problem, plan, state, images, labels, randomness)
        else:
            state, nll = _langevin_epoch(
                problem, plan, state, images, labels, validation, randomness
            )
        if not (math.isfinite(nll) and state.position.isfinite().all()):
            raise ChainError(
                f"chain {chain}: the loss or a weight is not finite in epoch {state.epoch}: "
                "take a shorter step"
            )
        write(checkpoint, state)
        report(Progress(chain, state.epoch, plan.epochs, nll))
    return True


@dataclass(frozen=True)
class _Plan:
    """Epochs and steps of a chain; a step index counts from the end of the warm start."""

    warm_epochs: int
    epochs: int
    steps_per_epoch: int
    sample_at: frozenset[int]
    trace_at: frozenset[int]

    @classmethod
    def of(cls, problem: Problem) -> _Plan:
        sampler = problem.recipe.sampler
        steps = problem.posterior.num_data // sampler.batch_size
        if steps == 0:
            raise ChainError(
                f"batch_size {sampler.batch_size} exceeds the {problem.posterior.num_data} "
                "training images"
            )
        first, length = sampler.burn_in_epochs * steps, sampler.sampling_epochs * steps
        for name, count in (("samples", sampler.samples), ("trace", sampler.trace)):
            if length and count > length:
                raise ChainError(f"{name} {count} exceeds the {length} steps of the sampling phase")
        return cls(
            warm_epochs=sampler.warm_start_epochs,
            epochs=sampler.warm_start_epochs + sampler.burn_in_epochs + sampler.sampling_epochs,
            steps_per_epoch=steps,
            sample_at=frozenset(_marks(first, length, sampler.samples)),
            trace_at=frozenset(_marks(first, length, sampler.trace)),
        )


def _marks(first: int, length: int, count: int) -> Iterator[int]:
    return (first + (index + 1) * length // count for index in range(count))


def _start(problem: Problem, chain: int) -> ChainState:
    """Initial weights: He's normal initialisation (2015), biases 0."""
    network, randomness = problem.network, generator(problem.recipe.seed, chain, 0)
    layers = []
    for layer in network.layers:
        outputs = layer.weight_shape[0]
        scale = math.sqrt(2 / layer.fan_in)
        layers.append(torch.randn(layer.size - outputs, generator=randomness) * scale)
        layers.append(torch.zeros(outputs))
    position = torch.cat(layers)
    empty = torch.empty(0)
    return ChainState(
        epoch=0,
        position=position,
        momentum=torch.zeros_like(position),
        warm=position.clone(),
        samples=empty.reshape(0, network.num_weights),
        trace=empty.reshape(0, len(OBSERVABLES)).double(),
        virial=empty.reshape(0, len(network.layers)).double(),
    )


def _warm_epoch(
    problem: Problem,
    plan: _Plan,
    state: ChainState,
    images: Tensor,
    labels: Tensor,
    randomness: torch.Generator,
) -> tuple[ChainState, float]:
    """One epoch of SGD with momentum on Ū: linear warm-up over 15 %, then half a cosine to 0."""
    sampler, total = problem.recipe.sampler, plan.warm_epochs * plan.steps_per_epoch
    position, momentum = state.position.clone(), state.momentum.clone()
    losses = 0.0
    batches = minibatches(len(labels), sampler.batch_size, randomness)
    for step, batch in enumerate(batches, start=state.epoch * plan.steps_per_epoch):
        done = step / total
        factor = done / 0.15 if done < 0.15 else (1 + math.cos(math.pi * (done - 0.15) / 0.85)) / 2
        gradient, nll = problem.posterior.gradient(position, images[batch], labels[batch])
        momentum.mul_(MOMENTUM).add_(gradient)
        position.add_(momentum, alpha=-sampler.warm_start_step_size * factor)
        losses += nll
    state = replace(
        state, epoch=state.epoch + 1, position=position, momentum=momentum, warm=position.clone()
    )
    return state, losses / plan.steps_per_epoch


def _langevin_epoch(
    problem: Problem,
    plan: _Plan,
    state: ChainState,
    images: Tensor,
    labels: Tensor,
    validation: tuple[Tensor, Tensor],
    randomness: torch.Generator,
) -> tuple[ChainState, float]:
    posterior, settings = problem.posterior, problem.recipe.sampler
    sampler = SGLD(
        num_data=posterior.num_data,
        schedule=settings.step_sizes(plan.steps_per_epoch),
        generator=randomness,
        temperature=settings.temperature,
    )
    batches = minibatches(len(labels), settings.batch_size, randomness)
    start = (state.epoch - plan.warm_epochs) * plan.steps_per_epoch
    current = sampler.init(state.position, start)
    samples, trace = [], []
    virial, losses = torch.zeros_like(state.position), 0.0
    for batch in batches:
        nll = 0.0

        def target(position: Tensor, batch: Tensor = batch) -> tuple[Tensor, Tensor]:
            nonlocal nll
            force, nll = posterior.gradient(position, images[batch], labels[batch])
            return force.new_tensor(nll), force

        current, info = sampler.step(current, target)
        virial.add_(info.virial)
        losses += nll
        if current.step in plan.sample_at:
            samples.append(current.position.clone())
        if current.step in plan.trace_at:
            trace.append(_observe(problem, current.position, *validation))
    mean_virial = _by_layer(problem, virial) * posterior.num_data / plan.steps_per_epoch
    sampling = state.epoch >= plan.warm_epochs + settings.burn_in_epochs
    state = ChainState(
        epoch=state.epoch + 1,
        position=current.position,
        momentum=state.momentum,
        warm=state.warm,
        samples=torch.cat([state.samples, *(sample[None] for sample in samples)]),
        trace=torch.cat([state.trace, *(values[None] for values in trace)]),
        virial=torch.cat([state.virial, mean_virial[None]]) if sampling else state.virial,
    )
    return state, losses / plan.steps_per_epoch


def _by_layer(problem: Problem, values: Tensor) -> Tensor:
    """Sum of values [D] over each layer, [L], in double precision."""
    parts = values.double().split([layer.size for layer in problem.network.layers])
    return torch.stack([part.sum() for part in parts])


@torch.no_grad()
def _observe(problem: Problem, position: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """NLL (nats), accuracy and mean predictive entropy (nats) of one weight vector, [3]."""
    log_probabilities = F.log_softmax(problem.posterior.logits(position, images).double(), dim=1)
    nll = F.nll_loss(log_probabilities, labels)
    accuracy = (log_probabilities.argmax(1) == labels).double().mean()
    entropy = torch.special.entr(log_probabilities.exp()).sum(1).mean()
    return torch.stack([nll, accuracy, entropy])


def read_result(run: Path, chain: int, problem: Problem) -> ChainResult:
    """Read a finished chain.

    Raises:
        ChainError: it is missing, unreadable or unfinished.
    """
    file = path_of(run, chain)
    if not file.exists():
        raise ChainError(f"{file}: chain {chain} has not been run: run the sample stage first")
    state = read(file, problem.network.num_weights)
    if state.epoch < _Plan.of(problem).epochs:
        raise ChainError(f"{file}: chain {chain} is unfinished: run the sample stage to resume it")
    return ChainResult(
        warm=state.warm.numpy(),
        samples=state.samples.numpy(),
        trace=state.trace.numpy(),
        virial=state.virial.numpy(),
    )
