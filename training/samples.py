"""What the chains of a run kept, and what it says of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.manifest import Members
from models.uncertainty import Array, entropy
from training.chains import ChainResult
from training.diagnostics import split_rhat
from training.observables import sample_probabilities
from training.posterior import Posterior
from training.problem import Problem

MIXING_IMAGES = 300


@dataclass(frozen=True)
class Samples:
    """S weight vectors of each of C chains.

    Attributes:
        posterior: what they are samples of.
        chains: [S, D] of each chain.
        weights: in the posterior's mean, [C, S]: ∝ η where steps decay; None if all are equal.
    """

    posterior: Posterior
    chains: tuple[NDArray[np.float32], ...]
    weights: Array | None

    @classmethod
    def of(cls, problem: Problem, results: Sequence[ChainResult]) -> Samples:
        """S is that of the chain that kept the fewest; of the others the last S count."""
        kept = min(len(result.samples) for result in results)
        weights = None
        if problem.recipe.sampler.weights_samples:
            weights = np.stack([result.step_sizes[-kept:] for result in results])
        chains = tuple(result.samples[-kept:] for result in results)
        return cls(problem.posterior, chains, weights)

    def __len__(self) -> int:
        """C × S."""
        return sum(map(len, self.chains))

    def positions(self, members: Members) -> NDArray[np.float32]:
        """Weights [M, D] of the members."""
        chosen = zip(members.chains, members.samples, strict=True)
        return np.stack([self.chains[chain][sample] for chain, sample in chosen])

    def probabilities(self, images: Tensor) -> NDArray[np.float32]:
        """Class probabilities of every sample, [C, S, n, K], for images [n, C, H, W]."""
        return np.stack(
            [sample_probabilities(self.posterior, chain, images) for chain in self.chains]
        )

    def entropy_rhat(self, images: Tensor) -> float:
        """Split R-hat of a sample's mean entropy on some 300 of the images: do the chains agree?

        Where data do not pin the networks down, as on unfamiliar images, they take longest to mix.
        """
        some = images[:: max(1, len(images) // MIXING_IMAGES)]
        return split_rhat(entropy(self.probabilities(some).astype(np.float64)).mean(axis=2))
