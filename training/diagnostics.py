"""Is the sampler at equilibrium, and at the right temperature? Numpy only.

R-hat asks whether the chains tell the same story, the configurational temperature whether it is the
right one: a step that is far too long passes the first and fails the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from training.relaxation import Relaxation, relaxation
from training.temperature import Estimate, configurational_temperature, gradient_noise_ratio

__all__ = [
    "Estimate",
    "Mixing",
    "Relaxation",
    "bulk_effective_sample_size",
    "configurational_temperature",
    "drift",
    "effective_sample_size",
    "gradient_noise_ratio",
    "mixing",
    "rank_normalised_rhat",
    "relaxation",
    "split_rhat",
    "standard_error",
]

Array = NDArray[np.float64]


def split_rhat(draws: Array) -> float:
    """Split R-hat of draws [C, n]: sqrt(((n−1)/n W + B/n) / W) over the 2 C half chains.

    W is the mean variance within half chains of length n, B/n the variance of their means
    (Gelman et al., Bayesian Data Analysis, 3rd ed., §11.4). 1 when all halves agree; an odd last
    draw is dropped. Infinite when the halves are constant but differ, 1 when all are equal.
    """
    return float(_rhat(_halves(draws))[0])


def rank_normalised_rhat(draws: Array) -> float:
    """The larger of two split R-hats of draws [C, n], after rank normalisation.

    One is that of the draws' normal scores Φ⁻¹((rank − 3/8) / (C n + 1/4)), and sees chains that
    differ in location whatever the tails; the other is that of the scores of |draw − median|, and
    sees chains that differ in scale (Vehtari et al. 2021, arXiv 1903.08008).
    """
    return float(_rank_rhat(_halves(draws))[0])


def effective_sample_size(draws: Array) -> float:
    """Effective number of independent draws among draws [C, n], over split chains.

    m n / τ with τ = −1 + 2 Σ_{t<k} P_t + ρ_{2k}, where P_t are Geyer's initial monotone sums of
    pairs of autocorrelations, cut before the first negative one, and the autocorrelation after them
    counts once if it is positive (Vehtari et al. 2021, arXiv 1903.08008, §3.2). At most
    m n log10(m n), for draws that alternate.
    """
    return float(_effective_sample_size(_halves(draws))[0])


def bulk_effective_sample_size(draws: Array) -> float:
    """Effective sample size of the normal scores of draws [C, n]: defined for any tails."""
    return float(_effective_sample_size(_normal_scores(_halves(draws)))[0])


def standard_error(draws: Array) -> float:
    """Monte-Carlo standard error of the mean of draws [C, n]: their deviation / sqrt(ESS)."""
    return float(draws.std(ddof=1) / np.sqrt(effective_sample_size(draws)))


def drift(draws: Array) -> float:
    """z: second-half less first-half mean of draws [C, n], n ≥ 8, in units of its standard error.

    The two halves of all chains are taken as independent, each with its `standard_error`. At
    equilibrium z is close to a standard normal if the effective sample size is large; a trend
    common to the chains makes it large. 0 for draws that are all equal.
    """
    half = draws.shape[1] // 2
    first, second = draws[:, :half], draws[:, -half:]
    gap = float(second.mean() - first.mean())
    error = float(np.hypot(standard_error(first), standard_error(second)))
    if error == 0:
        return 0.0 if gap == 0 else float(np.copysign(np.inf, gap))
    return gap / error


@dataclass(frozen=True)
class Mixing:
    """How well chains mix in q coordinates.

    Attributes:
        rhat: `rank_normalised_rhat` of each, [q].
        ess: `bulk_effective_sample_size` of each, [q].
    """

    rhat: Array
    ess: Array


def mixing(draws: Array) -> Mixing:
    """R-hat and effective sample size of many coordinates at once.

    Args:
        draws: [C, n, q].
    """
    halves = _halves(draws)
    return Mixing(_rank_rhat(halves), _effective_sample_size(_normal_scores(halves)))


def _halves(draws: Array) -> Array:
    """Half chains [2 C, n/2, q]."""
    if draws.ndim not in (2, 3) or draws.shape[1] < 4:
        raise ValueError(f"draws must have shape [C, n] with n of at least 4, got {draws.shape}")
    draws = draws.reshape(*draws.shape[:2], -1)
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def _moved(halves: Array) -> Array:
    """Draws less the first one, so that the variance of equal draws is 0 without rounding."""
    return halves - halves[:1, :1]


def _rhat(halves: Array) -> Array:
    halves = _moved(halves)
    n = halves.shape[1]
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    between = halves.mean(axis=1).var(axis=0, ddof=1)
    constant = np.where(between == 0, 1.0, np.inf)
    ratio = np.divide(between, within, out=np.zeros_like(within), where=within > 0)
    return np.where(within > 0, np.sqrt((n - 1) / n + ratio), constant)


def _rank_rhat(halves: Array) -> Array:
    folded = np.abs(halves - np.median(halves, axis=(0, 1)))
    return np.maximum(_rhat(_normal_scores(halves)), _rhat(_normal_scores(folded)))


def _normal_scores(values: Array) -> Array:
    """Normal scores of values [m, n, q] among the m n of their coordinate; ties share a rank."""
    flat = values.reshape(-1, values.shape[2])
    total, normal = len(flat), NormalDist()
    scores = [
        normal.inv_cdf((rank / 2 - 3 / 8) / (total + 1 / 4)) for rank in range(2, 2 * total + 1)
    ]
    doubled = np.apply_along_axis(_doubled_ranks, 0, flat)
    return np.array(scores)[doubled - 2].reshape(values.shape)


def _doubled_ranks(values: Array) -> NDArray[np.int64]:
    """Twice the rank of each value, from 2; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    result: NDArray[np.int64] = (2 * counts.cumsum() - counts + 1)[inverse]
    return result


def _effective_sample_size(halves: Array) -> Array:
    halves = _moved(halves)
    m, n, q = halves.shape
    covariance = _autocovariance(halves).mean(axis=0)
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + halves.mean(axis=1).var(axis=0, ddof=1)
    correlation = 1 - (within - covariance) / np.where(total > 0, total, 1)
    correlation[0] = 1.0
    pairs = correlation[: n - n % 2].reshape(n // 2, 2, q).sum(axis=1)
    negative = pairs < 0
    kept = np.where(negative.any(axis=0), negative.argmax(axis=0), n)
    kept = np.minimum(kept, max(0, (n - 3) // 2))
    counted = np.arange(n // 2)[:, None] < kept
    following = np.maximum(0, correlation[2 * kept, np.arange(q)])
    tau = -1 + 2 * (np.minimum.accumulate(pairs) * counted).sum(axis=0) + following
    result: Array = np.where(total > 0, m * n / np.maximum(tau, 1 / np.log10(m * n)), m * n)
    return result


def _autocovariance(halves: Array) -> Array:
    """Autocovariances at lags 0 … n − 1 of series [m, n, q] about their means, divided by n."""
    n = halves.shape[1]
    centred = halves - halves.mean(axis=1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(centred, 2 * n, axis=1)) ** 2
    result: Array = np.fft.irfft(spectrum, axis=1)[:, :n] / n
    return result
