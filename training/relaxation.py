"""How long does a chain remember its start? Numpy only.

The divergence of a chain's law from the law it preserves never rises. Seen through one observable
and taken as Gaussian, it is measured for windows of the trace: (mean μ, variance v) of a window
against (m, s²) of the trace's end, all chains pooled,

    KL = ½ [v/s² + (μ−m)²/s² − 1 − ln(v/s²)]   nats,

a lower bound on the divergence of the weights' laws. For a window of k independent draws at
equilibrium it is about 1/k, not 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RELAXED = 0.1
"""KL, in nats, below which a window is taken for relaxed if the next one is as well."""


@dataclass(frozen=True)
class Relaxation:
    """A relaxation curve.

    Attributes:
        starts: index of each window's first trace point.
        kl: divergence of each window from the end of the trace, nats; infinite where only one of
            the two is constant.
        burn_in: start of the first of two successive windows with KL below 0.1, both before the
            end that they are compared with; None if there are none.
    """

    starts: tuple[int, ...]
    kl: tuple[float, ...]
    burn_in: int | None


def relaxation(draws: Array, width: int, final: int) -> Relaxation:
    """Relaxation of an observable traced from the start of the chains.

    Args:
        draws: trace [C, t].
        width: trace points in a window.
        final: trace points at the end that stand for equilibrium.

    Raises:
        ValueError: there are not two windows before the end, or windows of a single draw.
    """
    chains, length = draws.shape
    if chains * width < 2 or width < 1 or final < width or length - final < 2 * width:
        raise ValueError(
            f"needs windows of at least 2 draws, two of them before the end: "
            f"got {chains} chains of {length} points, width {width} and final {final}"
        )
    starts = tuple(range(0, length - width + 1, width))
    mean, variance = draws[:, -final:].mean(), draws[:, -final:].var(ddof=1)
    kl = tuple(_divergence(draws[:, s : s + width], mean, variance) for s in starts)
    before = [start for start in starts if start + width <= length - final]
    relaxed = [value < RELAXED for value in kl[: len(before)]]
    pairs = enumerate(pairwise(relaxed))
    burn_in = next((before[index] for index, both in pairs if all(both)), None)
    return Relaxation(starts, kl, burn_in)


def _divergence(window: Array, mean: float, reference: float) -> float:
    variance, shift = window.var(ddof=1), (window.mean() - mean) ** 2
    if variance == 0 or reference == 0:
        return 0.0 if variance == reference and shift == 0 else float("inf")
    ratio = variance / reference
    return float((ratio + shift / reference - 1 - np.log(ratio)) / 2)
