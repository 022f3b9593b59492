from __future__ import annotations

import math

import numpy as np
import pytest
from arviz_stats.base import array_stats
from numpy.typing import NDArray

from training.diagnostics import (
    configurational_temperature,
    effective_sample_size,
    gradient_noise_ratio,
    split_rhat,
)

Array = NDArray[np.float64]


def autoregressive(seed: int, shape: tuple[int, int], phi: float, spread: float = 0.0) -> Array:
    """Chains x_t = φ x_{t−1} + ξ_t, each moved by `spread` times a standard normal."""
    randomness = np.random.default_rng(seed)
    noise = randomness.normal(size=shape)
    draws = np.empty(shape)
    draws[:, 0] = noise[:, 0] / math.sqrt(1 - phi**2)
    for step in range(1, shape[1]):
        draws[:, step] = phi * draws[:, step - 1] + noise[:, step]
    return draws + spread * randomness.normal(size=(shape[0], 1))


SHAPES = [(4, 100), (8, 48), (3, 1001), (2, 331), (1, 200), (4, 7)]
MIXED = [
    autoregressive(seed, shape, phi)
    for seed, shape in enumerate(SHAPES)
    for phi in (-0.9, -0.3, 0.0, 0.5)
]
UNMIXED = [
    autoregressive(seed, shape, phi, spread=3.0)
    for seed, shape in enumerate(SHAPES[:2])
    for phi in (-0.9, 0.0, 0.5, 0.95)
]


def shape_of(draws: Array) -> str:
    return "x".join(map(str, draws.shape))


@pytest.mark.parametrize(
    "draws", [draws for draws in MIXED + UNMIXED if len(draws) > 1], ids=shape_of
)
def test_split_rhat_equals_that_of_arviz(draws: Array) -> None:
    assert split_rhat(draws) == pytest.approx(array_stats.rhat(draws, method="split"), rel=1e-10)


@pytest.mark.parametrize("draws", MIXED, ids=shape_of)
def test_effective_sample_size_equals_that_of_arviz(draws: Array) -> None:
    expected = array_stats.ess(draws, method="mean")
    assert effective_sample_size(draws) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("draws", UNMIXED, ids=shape_of)
def test_effective_sample_size_of_unmixed_chains_equals_that_of_arviz(draws: Array) -> None:
    expected = array_stats.ess(draws, method="mean")
    assert effective_sample_size(draws) == pytest.approx(expected, rel=1e-10)


def test_rhat_by_hand() -> None:
    """Half chains [0, 2], [2, 4]: W = 2, B/n = 2, so R-hat = sqrt(1/2 + 1)."""
    assert split_rhat(np.array([[0.0, 2.0, 2.0, 4.0]])) == pytest.approx(math.sqrt(1.5))


def test_rhat_does_not_depend_on_units() -> None:
    draws = autoregressive(1, (4, 80), 0.5)
    assert split_rhat(1e3 * draws - 7) == pytest.approx(split_rhat(draws))
    assert effective_sample_size(1e3 * draws - 7) == pytest.approx(effective_sample_size(draws))


def test_constant_chains() -> None:
    same = np.ones((3, 8))
    apart = np.array([[1.0] * 8, [2.0] * 8])
    assert split_rhat(same) == 1.0
    assert split_rhat(apart) == math.inf
    assert effective_sample_size(same) == 24
    assert math.isfinite(effective_sample_size(apart))


@pytest.mark.parametrize("shape", [(2, 3), (4,), (2, 0), (1, 2, 8)])
def test_too_few_draws(shape: tuple[int, ...]) -> None:
    for measure in (split_rhat, effective_sample_size):
        with pytest.raises(ValueError, match="n of at least 4"):
            measure(np.zeros(shape))


def test_effective_sample_size_of_a_known_series() -> None:
    """For AR(1), n (1 − φ)/(1 + φ); the estimate is within a fifth of it."""
    draws = autoregressive(5, (8, 5000), 0.8)
    assert effective_sample_size(draws) == pytest.approx(40_000 / 9, rel=0.2)


def test_temperature_of_an_exact_gaussian() -> None:
    """U/N = λ θ²/2 sampled at T: N θ ∇Ū = N λ θ² has mean T and variance 2 T², weight by weight."""
    temperature, num_data, sizes = 1.7, 500, [30, 70]
    chains, points = 4, 400
    print("seed 11")
    randomness = np.random.default_rng(11)
    parts = []
    for size, curvature in zip(sizes, (0.01, 30.0), strict=True):
        std = math.sqrt(temperature / (num_data * curvature))
        theta = randomness.normal(0, std, (chains, points, size))
        parts.append((num_data * theta * curvature * theta).sum(axis=2))
    virial = np.stack(parts, axis=2)
    overall, layers = configurational_temperature(virial, np.array(sizes, dtype=float))
    for estimate, size in zip((overall, *layers), (100, *sizes), strict=True):
        error = temperature * math.sqrt(2 / (size * chains * points))
        assert estimate.value == pytest.approx(temperature, abs=4.5 * error)
        assert estimate.standard_error == pytest.approx(error, rel=1.5)


def test_temperature_weighs_layers_by_their_size() -> None:
    virial = np.broadcast_to([10.0, 270.0], (3, 5, 2))
    overall, layers = configurational_temperature(virial, np.array([10.0, 90.0]))
    assert [layer.value for layer in layers] == [1.0, 3.0]
    assert overall.value == pytest.approx(2.8)
    assert overall.standard_error == pytest.approx(0, abs=1e-12)


def test_standard_error_is_that_of_chains_or_of_intervals() -> None:
    virial = np.array([[1.0, 3.0], [5.0, 7.0]])[..., None]
    (several, _), (single, _) = (
        configurational_temperature(values, np.ones(1)) for values in (virial, virial[:1])
    )
    assert several.value == 4.0
    assert several.standard_error == pytest.approx(np.std([2, 6], ddof=1) / math.sqrt(2))
    assert single.value == 2.0
    assert single.standard_error == pytest.approx(np.std([1, 3], ddof=1) / math.sqrt(2))


def test_gradient_noise_ratio_of_known_noise() -> None:
    """A step injects noise of variance 2 η T/N; minibatches add η² Var(g): η N Var(g)/(2 T)."""
    step_size, num_data, temperature = 0.1, 1000, 2.0
    deviations = np.array([0.01, 0.1, 1.0])
    print("seed 4")
    gradients = np.random.default_rng(4).normal(5.0, deviations, (4000, 3))
    ratio = gradient_noise_ratio(gradients, step_size, num_data, temperature)
    expected = 25 * deviations**2
    assert ratio == pytest.approx(expected, rel=4.5 * math.sqrt(2 / 4000))


def test_gradient_noise_ratio_by_hand() -> None:
    gradients = np.array([[1.0, 5.0], [3.0, 5.0]])
    assert gradient_noise_ratio(gradients, 0.5, 8, 1.0).tolist() == [4.0, 0.0]
