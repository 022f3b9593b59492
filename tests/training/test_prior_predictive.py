from __future__ import annotations

import math

import pytest
import torch

from models.networks import build
from training.posterior import Posterior
from training.prior_predictive import prior_predictive

CLASSES = 4
IMAGES = torch.randn(60, 1, 3, 3, generator=torch.Generator().manual_seed(0))


def figures(weights: float, bias: float, draws: int = 50) -> dict[str, float]:
    """Of a network 9-5-4 whose last bias has a σ of its own."""
    network = build("mlp", (1, 3, 3), CLASSES, hidden=(5,))
    stds = dict.fromkeys(network.shapes, weights) | {"dense2.bias": bias}
    posterior = Posterior.build(network, 10, stds)
    return prior_predictive(posterior, IMAGES, draws, torch.Generator().manual_seed(1))


def test_network_of_tiny_weights_knows_nothing() -> None:
    result = figures(1e-4, 1e-4)
    assert result["max_probability"] == pytest.approx(1 / CLASSES, abs=1e-3)
    assert result["entropy"] == pytest.approx(1, abs=1e-6)
    assert result["mutual_information"] == pytest.approx(0, abs=1e-6)
    assert result["logit_std"] < 1e-3


def test_network_of_a_loud_last_bias_calls_everything_by_one_name() -> None:
    result = figures(1e-4, 100.0)
    assert result["one_class"] == 1
    assert result["max_probability"] > 0.9
    assert result["entropy"] < 0.1
    assert result["mutual_information"] > 0.9


def test_network_of_loud_weights_tells_images_apart() -> None:
    result = figures(10.0, 1e-4)
    assert result["max_probability"] > 0.9
    assert result["one_class"] < 0.5


def test_logits_of_a_bias_alone_have_its_variance() -> None:
    """Centred over K classes, a variance σ² (K − 1)/K; χ² with (K − 1) M degrees of freedom."""
    draws, bias = 2000, 1.5
    print("seed 1")
    ratio = figures(1e-6, bias, draws)["logit_std"] ** 2 / (bias**2 * (CLASSES - 1) / CLASSES)
    assert ratio == pytest.approx(1, abs=4 * math.sqrt(2 / ((CLASSES - 1) * draws)))


def test_same_generator_gives_the_same_figures() -> None:
    assert figures(1.0, 1.0) == figures(1.0, 1.0)
    assert figures(1.0, 1.0)["draws"] == 50
    assert figures(1.0, 1.0)["images"] == len(IMAGES)


@pytest.mark.parametrize(("draws", "images"), [(1, 60), (2, 0)])
def test_too_few(draws: int, images: int) -> None:
    network = build("mlp", (1, 3, 3), CLASSES, hidden=(5,))
    posterior = Posterior.build(network, 10, dict.fromkeys(network.shapes, 1.0))
    with pytest.raises(ValueError, match="needs 2 draws and an image"):
        prior_predictive(posterior, IMAGES[:images], draws, torch.Generator())
