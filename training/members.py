"""Which posterior samples are served.

Thinning takes them at equal distances and looks at nothing. Greedy selection looks at what they
predict: it adds, one by one, the sample that brings the members' mean prediction closest to the
mean of all samples, so that any first few members already speak for the whole.

Selection sees held-out validation images only, and no labels: never calibration images, whose
p-values would no longer be those of fresh images, and never the test set. What it achieved is
measured on other validation images than it saw. By construction it passes over rare opinions: the
mutual information of the chosen comes out lower than that of as many random samples, which the
curves show.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import Members
from models.uncertainty import Array, entropy
from training.agreement import total_variation
from training.metrics import Labels, negative_log_likelihood

RANDOM_CHOICES = 20

Probabilities = NDArray[np.floating]
"""Class probabilities of every kept sample on n images, [C, S, n, K]."""


def thin(count: int, chains: int, samples: int, group: int) -> Members:
    """M members from C chains of S samples: equally spaced in each chain, chains interleaved.

    Member m comes from chain m mod C, so that any first few members span the chains.

    Raises:
        ValueError: M exceeds C S, or the group does not divide it.
    """
    _check(count, chains, samples)
    shares = [count // chains + (chain < count % chains) for chain in range(chains)]
    order = [(member % chains, member // chains) for member in range(count)]
    return Members(
        count=count,
        group=min(group, count),
        chains=tuple(chain for chain, _ in order),
        samples=tuple((turn + 1) * samples // shares[chain] - 1 for chain, turn in order),
    )


def select(
    count: int, probabilities: Probabilities, group: int, weights: Array | None = None
) -> Members:
    """M members chosen greedily, best first: the first m are those chosen for any m ≤ M.

    Member m is the sample that, with the m − 1 before it, minimises the total variation between
    their mean prediction and that of all C S samples, averaged over the images; no sample is
    chosen twice, and the earlier one wins a tie.

    Args:
        count: M.
        probabilities: on validation images, [C, S, n, K].
        group: members that are evaluated together, all if there are fewer.
        weights: of the samples in the mean of all, [C, S], such as the step sizes η_t of a
            decaying schedule; equal if not given. The members are averaged with equal weights.

    Raises:
        ValueError: M exceeds C S, or the group does not divide it.
    """
    chains, samples = probabilities.shape[:2]
    _check(count, chains, samples)
    flat = probabilities.reshape(chains * samples, -1)
    target = _mean(probabilities, weights).ravel()
    total = np.zeros_like(target)
    free, chosen = list(range(chains * samples)), list[int]()
    for size in range(1, count + 1):
        missing = (size * target - total).astype(flat.dtype)
        best = free[int(np.argmin([np.abs(flat[index] - missing).sum() for index in free]))]
        free.remove(best)
        chosen.append(best)
        total += flat[best]
    return Members(
        count=count,
        group=min(group, count),
        chains=tuple(index // samples for index in chosen),
        samples=tuple(index % samples for index in chosen),
        selection="greedy",
    )


def curves(
    probabilities: Probabilities,
    labels: Labels,
    members: Members,
    weights: Array | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How well the first M members stand for all samples, ready for JSON.

    Args:
        probabilities: on held-out images that selection did not see, [C, S, n, K].
        labels: of these images, [n].
        members: what is served.
        weights: as in `select`.
        seed: of the random choices.

    Returns:
        The counts M ("members"), and lists over them of `total_variation` to the mean of all
        samples, `nll`, `predictive_entropy` and `mutual_information` (nats, means over images) of
        the "served", of as many "thinned", and of as many at "random" (mean and standard deviation
        over 20 choices, the latter under names that end in _std); those of "all" samples, of whose
        mutual information M random ones show about 1 − 1/M; and how many images and samples were
        compared.
    """
    chains, samples, images = probabilities.shape[:3]
    randomness = np.random.default_rng(seed)
    everything = np.stack(np.divmod(np.arange(chains * samples), samples))
    single = np.array([[_mean_entropy(sample) for sample in chain] for chain in probabilities])
    target = _mean(probabilities, weights)

    def figures(chain: NDArray[np.int64], sample: NDArray[np.int64]) -> dict[str, float]:
        chosen = probabilities[chain, sample].mean(axis=0, dtype=np.float64)
        return _figures(chosen, float(single[chain, sample].mean()), target, labels)

    def random(size: int) -> dict[str, float]:
        choices = [
            figures(*randomness.choice(everything, size, replace=False, axis=1))
            for _ in range(RANDOM_CHOICES)
        ]
        table = {name: [choice[name] for choice in choices] for name in choices[0]}
        means = {name: float(np.mean(values)) for name, values in table.items()}
        return means | {f"{name}_std": float(np.std(values)) for name, values in table.items()}

    def of(chosen: Members, size: int) -> dict[str, float]:
        return figures(np.array(chosen.chains[:size]), np.array(chosen.samples[:size]))

    sizes = [2**power for power in range(members.count.bit_length()) if 2**power < members.count]
    sizes.append(members.count)
    expected = float(np.average(single, weights=weights))
    return {
        "images": images,
        "samples": chains * samples,
        "selection": members.selection,
        "members": sizes,
        "all": _figures(target, expected, target, labels),
        "served": _columns([of(members, size) for size in sizes]),
        "thinned": _columns([of(thin(size, chains, samples, 1), size) for size in sizes]),
        "random": _columns([random(size) for size in sizes]),
    }


def _check(count: int, chains: int, samples: int) -> None:
    if count > chains * samples:
        raise ValueError(f"{count} members exceed {chains} chains × {samples} samples")


def _mean_entropy(probabilities: Probabilities) -> float:
    return float(entropy(np.asarray(probabilities, np.float64)).mean())


def _mean(probabilities: Probabilities, weights: Array | None) -> Array:
    """Mean prediction of all samples, [n, K]."""
    equal = np.ones(probabilities.shape[:2])
    share = equal if weights is None else weights
    result: Array = np.tensordot(share / share.sum(), probabilities, axes=2)
    return result


def _figures(
    chosen: Array, expected_entropy: float, target: Array, labels: Labels
) -> dict[str, float]:
    total = _mean_entropy(chosen)
    return {
        "total_variation": total_variation(chosen, target),
        "nll": negative_log_likelihood(chosen, labels),
        "predictive_entropy": total,
        "mutual_information": total - expected_entropy,
    }


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
