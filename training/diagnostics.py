"""Is the sampler at equilibrium, and at the right temperature? Numpy only.

R-hat asks whether the chains tell the same story, the configurational temperature whether it is the
right one: a step that is far too long passes the first and fails the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    value: float
    standard_error: float


def split_rhat(draws: Array) -> float:
    """Split R-hat of draws [C, n]: sqrt(((n−1)/n W + B/n) / W) over the 2 C half chains.

    W is the mean variance within half chains of length n, B/n the variance of their means
    (Gelman et al., Bayesian Data Analysis, 3rd ed., §11.4). 1 when all halves agree; an odd last
    draw is dropped. Infinite when the halves are constant but differ, 1 when all are equal.
    """
    halves = _halves(draws)
    n = halves.shape[1]
    within = halves.var(axis=1, ddof=1).mean()
    between = halves.mean(axis=1).var(ddof=1)
    if within == 0:
        return 1.0 if between == 0 else float("inf")
    return float(np.sqrt((n - 1) / n + between / within))


def effective_sample_size(draws: Array) -> float:
    """Effective number of independent draws among draws [C, n], over split chains.

    m n / τ with τ = −1 + 2 Σ_{t<k} P_t + ρ_{2k}, where P_t are Geyer's initial monotone sums of
    pairs of autocorrelations, cut before the first negative one, and the autocorrelation after them
    counts once if it is positive (Vehtari et al. 2021, arXiv 1903.08008, §3.2). At most
    m n log10(m n), for draws that alternate.
    """
    halves = _halves(draws)
    m, n = halves.shape
    centred = halves - halves.mean(axis=1, keepdims=True)
    covariance = np.stack([_autocovariance(chain) for chain in centred]).mean(axis=0)
    within = covariance[0] * n / (n - 1)
    total = within * (n - 1) / n + halves.mean(axis=1).var(ddof=1)
    if total == 0:
        return float(m * n)
    correlation = 1 - (within - covariance) / total
    correlation[0] = 1.0
    pairs = correlation[: n - n % 2].reshape(-1, 2).sum(axis=1)
    last = max(0, (n - 3) // 2)
    kept = min(int(np.argmax(pairs < 0)), last) if (pairs < 0).any() else last
    following = max(0.0, correlation[2 * kept])
    tau = -1 + 2 * np.minimum.accumulate(pairs[:kept]).sum() + following
    return float(m * n / max(tau, 1 / np.log10(m * n)))


def configurational_temperature(virial: Array, weights: Array) -> tuple[Estimate, list[Estimate]]:
    """T_conf = ⟨θ·∇U⟩ / D, overall and per layer; T at stationarity, for any target.

    Args:
        virial: means of N θ∘∇Ū_B summed over each layer, one for each interval of steps,
            [C, t, L].
        weights: D_l, number of weights in each layer, [L].

    The standard error is that of the chains' means, or of the intervals' for a single chain.
    """
    overall = _estimate(virial.sum(axis=2) / weights.sum())
    layers = [_estimate(virial[:, :, layer] / weights[layer]) for layer in range(virial.shape[2])]
    return overall, layers


def gradient_noise_ratio(
    gradients: Array, step_size: float, num_data: int, temperature: float
) -> Array:
    """Minibatch noise over injected noise, for each weight: η N Var(∇Ū_B) / (2 T).

    Args:
        gradients: minibatch gradients ∇Ū_B at one θ, [n, D].
        step_size: η.
        num_data: N.
        temperature: T, positive.

    Its mean over weights is, to first order, the relative rise of the temperature; [D].
    """
    result: Array = step_size * num_data * gradients.var(axis=0, ddof=1) / (2 * temperature)
    return result


def _estimate(values: Array) -> Estimate:
    chains = values.mean(axis=1)
    independent = chains if len(chains) > 1 else values[0]
    error = independent.std(ddof=1) / np.sqrt(independent.size)
    return Estimate(float(chains.mean()), float(error))


def _halves(draws: Array) -> Array:
    if draws.ndim != 2 or draws.shape[1] < 4:
        raise ValueError(f"draws must have shape [C, n] with n of at least 4, got {draws.shape}")
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def _autocovariance(centred: Array) -> Array:
    """Autocovariances at lags 0 … n − 1 of a centred series [n], each divided by n."""
    n = centred.size
    spectrum = np.abs(np.fft.rfft(centred, 2 * n)) ** 2
    result: Array = np.fft.irfft(spectrum)[:n] / n
    return result
