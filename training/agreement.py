"""How alike two predictives are, and how alike two halves of one run are: numpy only.

Agreement and total variation are those of Izmailov et al. 2021 (arXiv 2104.14421, §5). Two runs
that sample the same law differ by Monte-Carlo noise, so a distance means something only beside the
floor: the distance between two halves of the reference itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from models.uncertainty import Array


def agreement(p: Array, q: Array) -> float:
    """Share of images whose most probable class is the same in p and q, [n, K] each."""
    return float((p.argmax(axis=1) == q.argmax(axis=1)).mean())


def total_variation(p: Array, q: Array) -> float:
    """Mean over images of ½ Σ_k |p_k − q_k|, for p and q [n, K]: 0 to 1."""
    return float(np.abs(p - q).sum(axis=1).mean() / 2)


@dataclass(frozen=True)
class Comparison:
    """A sampler beside its reference; "half" is a half of the chains, C/2 of them.

    Attributes:
        agreement: of all of the sampler's chains with the best predictive of the reference.
        half_agreement: of a half of the sampler with a half of the reference.
        floor_agreement: of two halves of the reference.
        total_variation: between a half of the sampler and a half of the reference.
        floor_total_variation: between two halves of the reference.
        own_total_variation: between two halves of the sampler.
    """

    agreement: float
    half_agreement: float
    floor_agreement: float
    total_variation: float
    floor_total_variation: float
    own_total_variation: float

    @property
    def expected_total_variation(self) -> float:
        """What Monte-Carlo noise alone makes of the total variation, to first order.

        sqrt((floor² + own²)/2): the noise of two independent halves adds in quadrature. What
        exceeds it is a difference of laws; if it is above the floor, the sampler mixes slowly.
        """
        return math.hypot(self.floor_total_variation, self.own_total_variation) / math.sqrt(2)


def compare(reference: Array, sampler: Array, best: Array) -> Comparison:
    """Compare predictives of each chain, [C, n, K], C even, with equally many draws a chain.

    A total variation shrinks with the number of draws behind either side, so the three of them are
    between halves: all have C/2 chains and the same number of draws on both sides, and a sampler of
    the reference's own law and mixing meets the floor in expectation. Each is the mean over all
    ways to choose the halves. The agreement with `best` [n, K], of all draws that the reference
    has, is the nearest to an agreement with the posterior itself.

    Raises:
        ValueError: the shapes differ, or C is odd.
    """
    if reference.shape != sampler.shape or len(reference) % 2:
        raise ValueError(
            f"give predictives of equally many chains, an even number: got {reference.shape} "
            f"and {sampler.shape}"
        )
    ours, theirs = _halves(sampler), _halves(reference)
    across = [(p, q) for p in ours for q in theirs]
    return Comparison(
        agreement=agreement(best, sampler.mean(axis=0)),
        half_agreement=_mean(agreement, across),
        floor_agreement=_mean(agreement, _opposite(theirs)),
        total_variation=_mean(total_variation, across),
        floor_total_variation=_mean(total_variation, _opposite(theirs)),
        own_total_variation=_mean(total_variation, _opposite(ours)),
    )


def _mean(measure: Callable[[Array, Array], float], pairs: list[tuple[Array, Array]]) -> float:
    return float(np.mean([measure(p, q) for p, q in pairs]))


def _opposite(halves: list[Array]) -> list[tuple[Array, Array]]:
    """Each half with its complement, once: `combinations` lists complements from both ends."""
    return list(zip(halves, reversed(halves), strict=True))[: len(halves) // 2]


def _halves(chains: Array) -> list[Array]:
    """Predictives [n, K] of every half of the chains [C, n, K]."""
    count = len(chains)
    return [chains[list(chosen)].mean(axis=0) for chosen in combinations(range(count), count // 2)]
