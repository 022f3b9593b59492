from __future__ import annotations

import math

import numpy as np
import pytest
from arviz_stats.base import array_stats
from numpy.typing import NDArray

from training.diagnostics import (
    bulk_effective_sample_size,
    configurational_temperature,
    drift,
    effective_sample_size,
    gradient_noise_ratio,
    mixing,
    rank_normalised_rhat,
    split_rhat,
    standard_error,
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


TIED = [np.round(2 * draws) for draws in (*MIXED[:8], *UNMIXED)]


@pytest.mark.parametrize(
    "draws", [draws for draws in MIXED + UNMIXED + TIED if len(draws) > 1], ids=shape_of
)
def test_rank_normalised_figures_equal_those_of_arviz(draws: Array) -> None:
    rhat = array_stats.rhat(draws, method="rank")
    assert rank_normalised_rhat(draws) == pytest.approx(rhat, rel=1e-10)
    ess = array_stats.ess(draws, method="bulk")
    assert bulk_effective_sample_size(draws) == pytest.approx(ess, rel=1e-10)


@pytest.mark.parametrize("draws", MIXED + UNMIXED, ids=shape_of)
def test_standard_error_equals_that_of_arviz(draws: Array) -> None:
    expected = array_stats.mcse(draws, method="mean")
    assert standard_error(draws) == pytest.approx(expected, rel=1e-10)


def test_rank_normalised_rhat_sees_scale_and_bears_heavy_tails() -> None:
    print("seed 3")
    randomness = np.random.default_rng(3)
    scales = np.array([1.0, 1.0, 1.0, 4.0])[:, None] * randomness.normal(size=(4, 400))
    assert split_rhat(scales) < 1.01
    assert rank_normalised_rhat(scales) > 1.1
    heavy = randomness.standard_cauchy((4, 400)) + 5 * np.arange(4)[:, None]
    assert rank_normalised_rhat(heavy) > 1.5 > split_rhat(heavy)


def test_rhat_of_independent_chains_follows_the_f_distribution() -> None:
    """n R-hat² − (n − 1) = B/W is F with m − 1 and m (n − 1) degrees of freedom, m half chains."""
    chains, n, replicas = 4, 50, 1000
    print("seed 8")
    draws = np.random.default_rng(8).normal(size=(replicas, chains, 2 * n))
    ratio = np.array([n * split_rhat(each) ** 2 - (n - 1) for each in draws])
    first, second = 2 * chains - 1, 2 * chains * (n - 1)
    mean = second / (second - 2)
    variance = 2 * mean**2 * (first + second - 2) / (first * (second - 4))
    assert ratio.mean() == pytest.approx(mean, abs=4 * math.sqrt(variance / replicas))


def test_many_coordinates_at_once() -> None:
    draws = np.stack([*(autoregressive(seed, (4, 60), 0.5) for seed in range(5))], axis=2)
    draws[:, :, 3] = np.round(draws[:, :, 3])
    draws[:, :, 4] = 0.1
    result = mixing(draws)
    for index in range(5):
        assert result.rhat[index] == rank_normalised_rhat(draws[:, :, index])
        assert result.ess[index] == bulk_effective_sample_size(draws[:, :, index])
    assert (result.rhat[4], result.ess[4]) == (1.0, 240)


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
    assert split_rhat(np.full((3, 14), 0.1)) == 1.0
    assert split_rhat(same) == 1.0
    assert split_rhat(apart) == math.inf
    assert effective_sample_size(same) == 24
    assert math.isfinite(effective_sample_size(apart))


@pytest.mark.parametrize("shape", [(2, 3), (4,), (2, 0), (1, 2, 8), (2, 4, 2, 2)])
def test_too_few_draws(shape: tuple[int, ...]) -> None:
    for measure in (split_rhat, effective_sample_size, rank_normalised_rhat, mixing):
        with pytest.raises(ValueError, match="n of at least 4"):
            measure(np.zeros(shape))


def test_effective_sample_size_of_a_known_series() -> None:
    """For AR(1), n (1 − φ)/(1 + φ); the estimate is within a fifth of it."""
    draws = autoregressive(5, (8, 5000), 0.8)
    assert effective_sample_size(draws) == pytest.approx(40_000 / 9, rel=0.2)


@pytest.mark.parametrize("phi", [-0.4, 0.0, 0.5, 0.8])
def test_standard_error_of_a_known_series(phi: float) -> None:
    """Squared, it estimates the variance of the mean, to 4 s.e. over 300 replicas.

    That is γ_0/(C n) (1 + 2 Σ_t (1 − t/n) φ^t), with γ_0 = 1/(1 − φ²). Geyer's cut keeps noise
    of pair sums P while it is positive, so the estimate is conservative. For white noise P_1 has
    deviation s = sqrt(2/(C n)) and 2 E[P_1⁺ + P_2⁺/2 + …] ≤ 1.6 s; ρ_2k adds 0.3 s at most.
    """
    replicas, chains, n = 300, 4, 2000
    print("seed 21")
    series = autoregressive(21, (replicas * chains, n), phi).reshape(replicas, chains, n)
    squares = np.array([standard_error(draws) ** 2 for draws in series])
    lags = np.arange(1, n)
    correlation = 1 + 2 * ((1 - lags / n) * phi**lags).sum()
    exact = correlation / ((1 - phi**2) * chains * n)
    error = squares.std(ddof=1) / math.sqrt(replicas)
    print(f"{squares.mean() / exact:.4f} of the exact, ± {error / exact:.4f}")
    assert squares.mean() > exact - 4 * error
    assert squares.mean() < exact * (1 + 2 * math.sqrt(2 / (chains * n))) + 4 * error


@pytest.mark.parametrize("phi", [-0.4, 0.0, 0.5])
def test_drift_of_a_stationary_series_is_standard_normal(phi: float) -> None:
    """Over R replicas the mean has standard error R^−½, the variance sqrt(2/R)."""
    replicas, chains, n = 1000, 4, 1000
    print("seed 31")
    series = autoregressive(31, (replicas * chains, n), phi).reshape(replicas, chains, n)
    z = np.array([drift(draws) for draws in series])
    print(f"mean {z.mean():.3f}, variance {z.var():.3f}")
    assert abs(z.mean()) < 4 / math.sqrt(replicas)
    assert z.var() == pytest.approx(1, abs=4 * math.sqrt(2 / replicas))


def test_drift_sees_a_trend_and_its_sign() -> None:
    draws = autoregressive(1, (4, 200), 0.5)
    trend = np.linspace(0, 3, 200)
    assert drift(draws + trend) > 5
    assert drift(-draws - trend) == pytest.approx(-drift(draws + trend))


def test_drift_of_constant_draws() -> None:
    assert drift(np.ones((2, 9))) == 0
    assert drift(np.repeat([[2.0, 1.0]], 8, axis=1)) == -math.inf


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
