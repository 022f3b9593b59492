"""What a chain says of itself on validation images: a few numbers at every trace point."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.posterior import Posterior

OBSERVABLES = ("nll", "accuracy", "entropy")
COORDINATES = 32


@dataclass(frozen=True)
class Trace:
    """What was observed in one phase of a chain.

    Attributes:
        observables: NLL (nats), accuracy and mean predictive entropy (nats) of the weights at each
            trace point on the validation images, [t, 3].
        coordinates: log-probability of a fixed random class for fixed random images, [t, Q].
        probabilities: mean over the trace points of the class probabilities, [n, K].
        virial: N ⟨θ∘∇Ū_B⟩ summed over each layer, mean over the steps of each epoch, [e, L].
    """

    observables: Tensor
    coordinates: Tensor
    probabilities: Tensor
    virial: Tensor

    @classmethod
    def empty(cls, images: int, classes: int, layers: int) -> Trace:
        """Nothing observed so far."""
        zeros = torch.zeros(0, dtype=torch.float64)
        return cls(
            observables=zeros.reshape(0, len(OBSERVABLES)),
            coordinates=zeros.reshape(0, COORDINATES),
            probabilities=torch.zeros(images, classes, dtype=torch.float64),
            virial=zeros.reshape(0, layers),
        )

    def add(self, log_probabilities: Tensor, labels: Tensor) -> Trace:
        """One more trace point: log-probabilities [n, K] of one weight vector, float64."""
        probabilities = log_probabilities.exp()
        observables = torch.stack(
            [
                F.nll_loss(log_probabilities, labels),
                (log_probabilities.argmax(1) == labels).double().mean(),
                torch.special.entr(probabilities).sum(1).mean(),
            ]
        )
        images, classes = coordinates(*log_probabilities.shape)
        count = len(self.observables)
        return replace(
            self,
            observables=torch.cat([self.observables, observables[None]]),
            coordinates=torch.cat([self.coordinates, log_probabilities[images, classes][None]]),
            probabilities=self.probabilities.lerp(probabilities, 1 / (count + 1)),
        )


def coordinates(images: int, classes: int) -> tuple[Tensor, Tensor]:
    """The Q random (image, class) pairs that every chain of a run is followed at, each [Q]."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randint(images, (COORDINATES,), generator=generator),
        torch.randint(classes, (COORDINATES,), generator=generator),
    )


@torch.no_grad()
def log_probabilities(posterior: Posterior, position: Tensor, images: Tensor) -> Tensor:
    """Log p(k|x, θ) [n, K] of one weight vector [D] for images [n, C, H, W], float64."""
    return F.log_softmax(posterior.logits(position, images).double(), dim=1)


def sample_probabilities(
    posterior: Posterior, samples: NDArray[np.float32], images: Tensor
) -> NDArray[np.float32]:
    """Class probabilities [S, n, K] of weight vectors [S, D] for images [n, C, H, W]."""
    positions = [torch.from_numpy(sample.copy()) for sample in samples]
    return np.stack(
        [
            log_probabilities(posterior, position, images).exp().float().numpy()
            for position in positions
        ]
    )
