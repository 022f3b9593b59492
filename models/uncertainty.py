"""How sure an ensemble is, and why not: entropies of member probabilities, in nats.

With member probabilities p_m = softmax(logits_m) and p̄ = mean_m p_m,

    predictive entropy  H[p̄]              total
    expected entropy    mean_m H[p_m]      aleatoric: the members agree that the image is ambiguous
    mutual information  H[p̄] − mean_m H[p_m] ≥ 0   epistemic: the members disagree

(Depeweg et al. 2018, arXiv 1710.07283). Probabilities are averaged, never logits or
log-probabilities: a geometric mean over members is no predictive distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_LEAST = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Prediction:
    """What the ensemble says of B images.

    Attributes:
        probabilities: p̄, [B, K]; each row sums to 1, so its maximum is at least 1/K.
        predictive_entropy: H[p̄], [B], nats, at most ln K.
        expected_entropy: mean over members of H[p_m], [B], nats.
        mutual_information: their difference, [B], nats, never negative.
        max_logit: largest mean logit, [B].
        largest: logit of each member, [M, B].
        normaliser: Σ_k exp(logit_k − largest) of each member, [M, B].
    """

    probabilities: Array
    predictive_entropy: Array
    expected_entropy: Array
    mutual_information: Array
    max_logit: Array
    largest: Array
    normaliser: Array

    @property
    def members(self) -> int:
        """M, the number of members that were averaged."""
        return len(self.normaliser)

    @property
    def energy(self) -> Array:
        """−ln Σ_k exp(logit_k), mean over members, [B]; low where a member is sure."""
        return -_sum(np.log(self.normaliser) + self.largest) / self.members


def softmax(logits: NDArray[np.floating]) -> Array:
    """Softmax over the last axis, in double precision."""
    values = np.asarray(logits, dtype=np.float64)
    exponential = np.exp(values - values.max(axis=-1, keepdims=True))
    probabilities: Array = exponential / exponential.sum(axis=-1, keepdims=True)
    return probabilities


def entropy(probabilities: Array) -> Array:
    """H[p] = −Σ_k p_k ln p_k over the last axis, in nats, with 0 ln 0 = 0."""
    result: Array = -(probabilities * _logarithm(probabilities)).sum(axis=-1)
    return np.maximum(result, 0.0)


def summarise(logits: NDArray[np.floating]) -> Prediction:
    """Average the members' probabilities and split the uncertainty.

    Whatever company an image comes in, its sums are taken in one order, and are the same to the
    bit: images lie side by side in memory, and classes and members are added one by one.

    Args:
        logits: member logits [B, M, K].
    """
    values = np.ascontiguousarray(logits.transpose(1, 2, 0), dtype=np.float64)  # [M, K, B]
    largest = values.max(axis=1)
    exponential = np.exp(values - largest[:, None])
    normaliser = _sum(exponential.swapaxes(0, 1))
    each = exponential / normaliser[:, None]
    probabilities = _mean(each)  # [K, B]
    total = np.maximum(-_sum(probabilities * _logarithm(probabilities)), 0.0)
    expected = np.maximum(-_sum(_mean(each * _logarithm(each))), 0.0)
    expected = np.minimum(expected, total)
    return Prediction(
        probabilities=np.ascontiguousarray(probabilities.T),
        predictive_entropy=total,
        expected_entropy=expected,
        mutual_information=total - expected,
        max_logit=_mean(values).max(axis=0),
        largest=largest,
        normaliser=normaliser,
    )


def _sum(terms: Array) -> Array:
    """Σ over the first axis, one after the other."""
    return reduce(np.add, terms)


def _mean(terms: Array) -> Array:
    """Mean over members of terms [M, K, B], K > 1: numpy adds whole rows, one after the other."""
    flat = terms.reshape(len(terms), -1)
    mean: Array = (flat.sum(axis=0) / len(terms)).reshape(terms.shape[1:])
    return mean


def _logarithm(probabilities: Array) -> Array:
    """Ln p; of zero, finite."""
    return np.asarray(np.log(np.maximum(probabilities, _LEAST)))
