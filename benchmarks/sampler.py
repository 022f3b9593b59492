"""What one step of SGLD costs, and how its minibatch noise can be lessened.

    python -m benchmarks.sampler [--data-dir D] [--bundle B]

First the mnist recipe's network on random images, one thread: SGLD's step, and that of posteriors,
against forward and backward alone. They take turns; the ratio is that of the medians. Then the
variance of minibatch gradients with a control variate over that without, as the chain walks away
from its anchor. A step with a control variate costs two gradients, so it pays below 1/2. Last that
of preferential minibatches over shuffled ones, in all and along the direction in which shuffled
ones are noisiest, as the chain walks and learns which images matter.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.numpy import load_file
from torch import Tensor, nn

from benchmarks.machine import describe
from models import bundle as bundles
from models.networks import Network, build
from training import recipe as recipes
from training.gradients import Anchor, anchored
from training.method import build as build_sampler
from training.minibatches import Batch, learn, preferential, shuffled
from training.posterior import Posterior, squared_residuals
from training.problem import Problem, formulate
from training.samplers import SGLD
from training.samplers.protocol import Sampler, Target
from training.schedules import constant

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # tensordict's, about posteriors' own states
    import posteriors  # type: ignore[import-untyped]

BATCH, ROUNDS, WARM_ROUNDS = 128, 100, 5
WALK = (1, 3, 10, 30, 100, 400)
PREFERENTIAL_WALK = (0, 400, 2000, 6000)
BATCHES = 192


def main(
    data_dir: Annotated[Path | None, typer.Option(help="Where MNIST is.")] = None,
    bundle: Annotated[Path, typer.Option()] = Path("models/pretrained/mnist"),
) -> None:
    """Print both tables, in Markdown."""
    torch.set_num_threads(1)
    print(f"one thread, {describe('torch', 'posteriors')}\n")
    problem = formulate(recipes.load("mnist"), data_dir)
    _print_times(problem.posterior)
    loaded = bundles.load(bundle)
    weights = load_file(loaded.path / bundles.WEIGHTS)
    member = np.concatenate([weights[name][0].ravel() for name in problem.network.shapes])
    images, labels = problem.tensors(problem.train)
    print("\n| network | steps from the anchor | distance | variance ratio |\n|---|---|---|---|")
    posterior, mode, inputs, outputs = _logistic_regression()
    sgld = SGLD(posterior.num_data, constant(1.0), torch.Generator().manual_seed(1))
    _print_variances("logistic regression, SGLD, η = 1", posterior, mode, inputs, outputs, sgld)
    start = torch.from_numpy(member)
    recipe = f"{problem.network.name}, the recipe's steps"
    _print_variances(recipe, problem.posterior, start, images, labels, _sampler(problem, 1))
    _print_preferential(problem.posterior, start, images, labels, _sampler(problem, 3))


def _sampler(problem: Problem, seed: int) -> Sampler[Any]:
    """The recipe's sampler at its last step size, the same in all layers."""
    settings = problem.recipe.sampler
    last = problem.recipe.sampler.step_sizes(1)(10**9)
    randomness = torch.Generator().manual_seed(seed)
    return build_sampler(settings, problem.posterior.num_data, constant(last), randomness, 1.0, 0)


def _print_times(posterior: Posterior) -> None:
    network = posterior.network
    randomness = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, *network.input_shape, generator=randomness)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(network.num_classes, (BATCH,), generator=randomness)
    start = posterior.prior.draw(randomness)

    def gradient() -> None:
        leaf = start.detach().requires_grad_()
        loss = F.cross_entropy(posterior.logits(leaf, images), labels)
        torch.autograd.grad(loss, leaf)

    sampler = SGLD(posterior.num_data, constant(1e-4), randomness)
    state = sampler.init(start)
    target = posterior.target(images, labels)

    def step() -> None:
        nonlocal state
        state, _ = sampler.step(state, target)

    contenders = {
        "forward and backward": gradient,
        "SGLD step": step,
        "posteriors, inplace=True": _posteriors(posterior, start, images, labels, inplace=True),
        "posteriors, inplace=False": _posteriors(posterior, start, images, labels, inplace=False),
    }
    medians = _medians(contenders)
    alone = medians["forward and backward"]
    print(f"| {network.name}, {network.num_weights:,} weights, B = {BATCH} | ms | ratio |")
    print("|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {1e3 * median:.2f} | {median / alone:.3f} |")
    theirs = min(medians["posteriors, inplace=True"], medians["posteriors, inplace=False"])
    print(f"\nSGLD step / the faster of posteriors: {medians['SGLD step'] / theirs:.3f}")


def _medians(contenders: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median CPU seconds of each, all of them taking turns, in an order drawn anew."""
    names, randomness = list(contenders), torch.Generator().manual_seed(0)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(WARM_ROUNDS + ROUNDS):
        for index in torch.randperm(len(names), generator=randomness).tolist():
            name = names[index]
            start = time.process_time()
            contenders[name]()
            if turn >= WARM_ROUNDS:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


class _Module(nn.Module):
    """The recipe's LeNet as anyone would write it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        first, second, third, last = (layer.weight_shape for layer in network.layers)
        self.convolutions = nn.Sequential(
            nn.Conv2d(first[1], first[0], first[2]), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(second[1], second[0], second[2]), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.dense = nn.Sequential(
            nn.Linear(third[1], third[0]), nn.ReLU(), nn.Linear(last[1], last[0])
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.dense(self.convolutions(images).flatten(1))
        return logits


def _posteriors(
    posterior: Posterior, start: Tensor, images: Tensor, labels: Tensor, *, inplace: bool
) -> Callable[[], None]:
    """One step of posteriors' SGLD on the same mean log posterior."""
    module, num_data = _Module(posterior.network), posterior.num_data
    names = [name for name, _ in module.named_parameters()]
    parts = posterior.network.unflatten(start[None]).values()
    parameters = {name: part[0].clone() for name, part in zip(names, parts, strict=True)}
    stds = posterior.network.unflatten(posterior.prior.std[None]).values()
    precisions = {name: 1 / std[0].square() for name, std in zip(names, stds, strict=True)}

    def log_posterior(values: dict[str, Tensor], batch: None) -> tuple[Tensor, Tensor]:
        logits = torch.func.functional_call(module, values, (images,))
        squares = [(precisions[name] * value.square()).sum() for name, value in values.items()]
        prior = torch.stack(squares).sum() / (2 * num_data)
        return -F.cross_entropy(logits, labels) - prior, torch.empty(0)

    method = posteriors.sgmcmc.sgld.build(log_posterior, lr=1e-4, temperature=1 / num_data)
    state = method.init(parameters)

    def step() -> None:
        nonlocal state
        state, _ = method.update(state, None, inplace=inplace)

    return step


def _logistic_regression() -> tuple[Posterior, Tensor, Tensor, Tensor]:
    """N = 2,000, 20 inputs, two classes; with the posterior's mode."""
    randomness = torch.Generator().manual_seed(0)
    network = build("mlp", (1, 1, 20), 2, hidden=())
    posterior = Posterior.build(network, 2_000, dict.fromkeys(network.shapes, 1.0))
    images = torch.randn(posterior.num_data, *network.input_shape, generator=randomness)
    truth = posterior.prior.draw(randomness)
    labels = posterior.logits(truth, images).softmax(1).multinomial(1, generator=randomness)[:, 0]
    target = posterior.target(images, labels)
    descent = SGLD(posterior.num_data, constant(1.0), randomness, temperature=0.0)
    state = descent.init(truth)
    for _ in range(500):
        state, _ = descent.step(state, target)
    return posterior, state.position, images, labels


def _print_variances(
    name: str,
    posterior: Posterior,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    sampler: Sampler[Any],
) -> None:
    """Walk from the anchor.

    Variances are summed over weights, and estimated on the same minibatches at every distance.
    """
    randomness = torch.Generator().manual_seed(1)
    zero = torch.zeros(())
    anchor = Anchor(start, zero, zero)  # a constant, so that the variance does not need it
    state = sampler.init(start)

    def draw(source: torch.Generator) -> Tensor:
        return torch.randperm(len(labels), generator=source)[:BATCH]

    for steps in WALK:
        while state.step < steps:
            batch = draw(randomness)
            state, _ = sampler.step(state, posterior.target(images[batch], labels[batch]))
        plain, controlled, same = [], [], torch.Generator().manual_seed(2)
        for _ in range(BATCHES):
            batch = draw(same)
            target = posterior.target(images[batch], labels[batch])
            plain.append(target(state.position)[1])
            controlled.append(anchored(target, anchor)(state.position)[1])
        ratio = (torch.stack(controlled).var(0).sum() / torch.stack(plain).var(0).sum()).item()
        distance = (state.position - start).norm().item()
        print(f"| {name} | {steps} | {distance:.2f} | {ratio:.3f} |", flush=True)


def _print_preferential(
    posterior: Posterior, start: Tensor, images: Tensor, labels: Tensor, sampler: Sampler[Any]
) -> None:
    """Walk from a member on preferential minibatches."""
    print(
        "\n| steps | variance, preferential / shuffled | in the noisiest direction |\n|---|---|---|"
    )
    randomness = torch.Generator().manual_seed(3)
    residuals = squared_residuals(
        torch.cat([posterior.logits(start, part) for part in images.split(1000)]), labels
    )
    state = sampler.init(start)
    walk = _endless(partial(preferential, residuals, BATCH, randomness))

    def gradient(position: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        chosen = images[batch.examples], labels[batch.examples]
        force, _, seen = posterior.weighted_gradient(position, *chosen, batch.weights)
        return force, seen

    def learning(batch: Batch) -> Target:
        def target(position: Tensor) -> tuple[Tensor, Tensor]:
            force, seen = gradient(position, batch)
            learn(residuals, batch, seen)
            return torch.zeros(()), force

        return target

    for steps in PREFERENTIAL_WALK:
        while state.step < steps:
            state, _ = sampler.step(state, learning(next(walk)))
        source = torch.Generator().manual_seed(4)
        alike = _endless(partial(shuffled, len(labels), BATCH, source))
        by_residual = _endless(partial(preferential, residuals, BATCH, source))
        plain, preferred = (
            torch.stack([gradient(state.position, batch)[0] for batch in islice(batches, BATCHES)])
            for batches in (alike, by_residual)
        )
        noisiest = torch.linalg.svd(plain - plain.mean(0), full_matrices=False).Vh[0]
        total = preferred.var(0).sum() / plain.var(0).sum()
        along = (preferred @ noisiest).var() / (plain @ noisiest).var()
        print(f"| {steps} | {total.item():.3f} | {along.item():.3f} |", flush=True)


def _endless(epoch: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
    while True:
        yield from epoch()


if __name__ == "__main__":
    typer.run(main)
