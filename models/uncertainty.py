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

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """What the ensemble says of B images.

    Attributes:
        probabilities: p̄, [B, K]; each row sums to 1, so its maximum is at least 1/K.
        predictive_entropy: H[p̄], [B], nats, at most ln K.
        expected_entropy: mean over members of H[p_m], [B], nats.
        mutual_information: their difference, [B], nats, never negative.
        max_logit: largest mean logit, [B].
        energy: −ln Σ_k exp(logit_k), mean over members, [B]; low where a member is sure.
        members: M, the number of members that were averaged.
    """

    probabilities: Array
    predictive_entropy: Array
    expected_entropy: Array
    mutual_information: Array
    max_logit: Array
    energy: Array
    members: int


def softmax(logits: NDArray[np.floating]) -> Array:
    """Softmax over the last axis, in double precision."""
    return _normalise(np.asarray(logits, dtype=np.float64))[0]


def entropy(probabilities: Array) -> Array:
    """H[p] = −Σ_k p_k ln p_k over the last axis, in nats, with 0 ln 0 = 0."""
    logarithm = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    result: Array = -(probabilities * logarithm).sum(axis=-1)
    return np.maximum(result, 0.0)


def summarise(logits: NDArray[np.floating]) -> Prediction:
    """Average the members' probabilities and split the uncertainty.

    Args:
        logits: member logits [B, M, K].
    """
    values = np.asarray(logits, dtype=np.float64)
    member_probabilities, normaliser = _normalise(values)
    probabilities = member_probabilities.mean(axis=1)
    total = entropy(probabilities)
    expected = np.minimum(entropy(member_probabilities).mean(axis=1), total)
    return Prediction(
        probabilities=probabilities,
        predictive_entropy=total,
        expected_entropy=expected,
        mutual_information=total - expected,
        max_logit=values.mean(axis=1).max(axis=1),
        energy=-normaliser.mean(axis=(1, 2)),
        members=member_probabilities.shape[1],
    )


def _normalise(logits: Array) -> tuple[Array, Array]:
    """Softmax over the last axis, and the logarithm of its denominator, that axis kept as 1."""
    largest = logits.max(axis=-1, keepdims=True)
    exponential = np.exp(logits - largest)
    total = exponential.sum(axis=-1, keepdims=True)
    return exponential / total, np.log(total) + largest
