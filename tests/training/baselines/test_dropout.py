from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from models.networks import Network, build
from training.baselines.dropout import DRAWS, RATES, DropoutPosterior, draws, dropout
from training.posterior import Posterior
from training.problem import Problem
from training.recipe import change
from training.warm_start import initial_weights

SEED = 11
NETWORKS = [
    build("lenet", (1, 12, 12), 5, channels=(3, 4), kernel=3, hidden=(7,), activation="silu"),
    build("mlp", (1, 4, 4), 3, hidden=(6, 5), activation="tanh"),
]


def with_dropout(network: Network, rate: float) -> DropoutPosterior:
    print(f"seed {SEED}")
    posterior = Posterior.build(network, 100, dict.fromkeys(network.shapes, 1.0))
    return DropoutPosterior(
        network,
        posterior.num_data,
        posterior.prior,
        activation="silu" if network.name == "lenet" else "tanh",
        rate=rate,
        generator=torch.Generator().manual_seed(SEED),
    )


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_without_dropout_it_is_the_network(network: Network) -> None:
    posterior = with_dropout(network, 0.0)
    position = initial_weights(network, posterior.generator)
    images = torch.randn(4, *network.input_shape, generator=posterior.generator)
    expected, _ = network.forward(network.unflatten(position[None]), images)
    torch.testing.assert_close(posterior.logits(position, images), expected.squeeze(1))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_a_pass_drops_whole_inputs_of_dense_layers_alone(network: Network) -> None:
    position = torch.ones(network.num_weights)
    randomness = torch.Generator().manual_seed(SEED)
    for name, weight in network.unflatten(draws(network, position, 0.5, randomness)).items():
        if name.startswith("dense") and name.endswith(".weight"):
            assert set(weight.unique().tolist()) == {0.0, 2.0}
            assert (weight == weight[:, :1]).all()
            assert len(weight[:, 0].unique(dim=0)) > DRAWS / 4
        else:
            assert (weight == 1).all()


def test_masks_of_images_have_the_law_of_masks_of_passes() -> None:
    """One linear layer: logits of both are Σ w_j x_j z_j/(1 − ρ), of known mean and variance."""
    network = build("mlp", (1, 1, 8), 1, hidden=())
    rate, size = 0.3, 4000
    posterior = with_dropout(network, rate)
    position = torch.arange(1.0, 10.0)
    images = torch.linspace(-1, 2, 8).reshape(1, 1, 1, 8)
    by_image = posterior.logits(position, images.expand(size, 1, 1, 8))
    passes = torch.cat(
        [draws(network, position, rate, posterior.generator) for _ in range(size // DRAWS)]
    )
    by_pass = network.forward(network.unflatten(passes), images)[0].flatten()
    terms = (position[:8] * images.flatten()).double()
    mean, variance = terms.sum() + 9, (terms**2).sum() * rate / (1 - rate)
    # Fourth central moment of a sum: 3 V² + Σ κ₄, with κ₄ of Bernoulli scaled by 1/(1 − ρ)⁴.
    excess = rate * (1 - rate) * (1 - 6 * rate * (1 - rate)) / (1 - rate) ** 4
    kurtosis = 3 * variance**2 + excess * (terms**4).sum()
    for values in (by_image.double().flatten(), by_pass.double()):
        n = len(values)
        assert values.mean().item() == pytest.approx(mean.item(), abs=4 * math.sqrt(variance / n))
        error = math.sqrt((kurtosis - variance**2) / n)
        assert values.var().item() == pytest.approx(variance.item(), abs=4 * error)


def test_the_same_seed_gives_the_same_passes(problem: Problem) -> None:
    brief = replace(problem, recipe=change(problem.recipe, {"sampler": {"chains": 3}}))
    steps: list[tuple[int, int]] = []
    first = dropout(brief, lambda step: steps.append((step.chain, step.epoch)))
    again = dropout(brief, lambda step: None)
    assert (first.positions == again.positions).all()
    assert first.positions.shape == (DRAWS, problem.network.num_weights)
    assert first.settings["rate"] in RATES
    assert steps == [(index, epoch) for index in range(3) for epoch in range(1, 9)]
    assert first.epochs == 24
