from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from models.networks import Network, build
from training.posterior import Posterior, PriorError

STDS = {"dense1.weight": 0.5, "dense1.bias": 1.0, "dense2.weight": 2.0, "dense2.bias": 3.0}


@pytest.fixture
def network() -> Network:
    return build("mlp", (1, 2, 3), 4, hidden=(5,), activation="tanh")


def test_prior_std_follows_the_flat_vector(network: Network) -> None:
    shuffled = dict(reversed(STDS.items()))
    std = Posterior.build(network, 10, shuffled).prior.std
    assert std.tolist() == [0.5] * 30 + [1.0] * 5 + [2.0] * 20 + [3.0] * 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dense1.bias": None}, r"missing \['dense1.bias'\], unknown \[\]"),
        ({"dense3.bias": 1.0}, r"missing \[\], unknown \['dense3.bias'\]"),
        ({"dense1.bias": 0.0}, "prior_std of dense1.bias must be positive and finite, got 0.0"),
        ({"dense1.bias": -1.0}, "got -1.0"),
        ({"dense1.bias": math.inf}, "got inf"),
        ({"dense1.bias": math.nan}, "got nan"),
    ],
)
def test_prior_that_does_not_fit(network: Network, change: dict[str, Any], reason: str) -> None:
    stds = {name: std for name, std in {**STDS, **change}.items() if std is not None}
    with pytest.raises(PriorError, match=reason) as caught:
        Posterior.build(network, 10, stds)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_data", [0, -1])
def test_number_of_examples_must_be_positive(network: Network, num_data: int) -> None:
    with pytest.raises(PriorError, match=f"num_data must be positive, got {num_data}"):
        Posterior.build(network, num_data, STDS)


def test_prior_draws_have_the_prior_std() -> None:
    wide = build("mlp", (1, 50, 50), 2, hidden=(40,))
    posterior = Posterior.build(wide, 10, STDS)
    generator = torch.Generator().manual_seed(7)
    print("seed 7")
    drawn = posterior.prior.draw(generator)[:100_000] / 0.5
    assert abs(drawn.mean().item()) < 4.5 / math.sqrt(100_000)
    assert drawn.var().item() == pytest.approx(1.0, abs=4.5 * math.sqrt(2 / 100_000))


def test_logits_are_those_of_one_member(network: Network) -> None:
    posterior = Posterior.build(network, 10, STDS)
    generator = torch.Generator().manual_seed(0)
    positions = torch.stack([posterior.prior.draw(generator) for _ in range(3)])
    images = torch.randn(6, 1, 2, 3, generator=generator)
    together, _ = network.forward(network.unflatten(positions), images)
    for member, position in enumerate(positions):
        logits = posterior.logits(position, images)
        assert logits.shape == (6, 4)
        assert torch.allclose(logits, together[:, member], atol=1e-6)


def test_gradient_is_that_of_the_energy(network: Network) -> None:
    """∇Ū_B by central differences of the mean NLL and of θ²/(2 N σ²), in double precision."""
    posterior = Posterior.build(network, 10, STDS)
    generator = torch.Generator().manual_seed(0)
    position = posterior.prior.draw(generator).double()
    images = torch.randn(6, 1, 2, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])

    def energy(theta: torch.Tensor) -> float:
        log_p = posterior.logits(theta, images).log_softmax(1)[torch.arange(6), labels]
        prior = (theta / posterior.prior.std.double()).square().sum() / 2
        return float(-log_p.mean() + prior / 10)

    before = position.clone()
    gradient, nll = posterior.gradient(position, images, labels)
    prior = (position / posterior.prior.std.double()).square().sum().item() / 20
    assert nll == pytest.approx(energy(position) - prior)
    assert torch.equal(position, before)
    assert not gradient.requires_grad
    for index in range(0, len(position), 7):
        step = torch.zeros_like(position)
        step[index] = 1e-6
        slope = (energy(position + step) - energy(position - step)) / 2e-6
        assert gradient[index].item() == pytest.approx(slope, abs=1e-7)
