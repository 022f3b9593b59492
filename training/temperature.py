"""Is it the right temperature, and what heats it? Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    value: float
    standard_error: float


def configurational_temperature(
    virial: ArrayLike, weights: ArrayLike
) -> tuple[Estimate, list[Estimate]]:
    """T_conf = ⟨θ·∇U⟩ / D, overall and per layer; T at stationarity, for any target.

    Args:
        virial: means of N θ∘∇Ū_B summed over each layer, one for each interval of steps,
            [C, t, L].
        weights: D_l, number of weights in each layer, [L].

    The standard error is that of the chains' means, or of the intervals' for a single chain.
    """
    virial, sizes = np.asarray(virial, np.float64), np.asarray(weights, np.float64)
    overall = _estimate(virial.sum(axis=2) / sizes.sum())
    layers = [_estimate(virial[:, :, layer] / sizes[layer]) for layer in range(virial.shape[2])]
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
