"""The posterior of a network's weights, and its gradient.

U(θ) = −Σᵢ log p(yᵢ|xᵢ,θ) − log p(θ) over N examples: cross-entropy, and a prior with a standard
deviation σ_j for each weight. N and σ have no default: without N the temperature has no meaning,
and without a prior there is no posterior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.networks import Network
from training.priors import Family, Prior
from training.samplers.protocol import Target


class PriorError(ValueError):
    """A prior that does not cover the network's parameters."""


@dataclass(frozen=True)
class Posterior:
    """U/N and its gradient for one network.

    Attributes:
        network: the architecture.
        num_data: N.
        prior: p(θ).
    """

    network: Network
    num_data: int
    prior: Prior

    @classmethod
    def build(
        cls,
        network: Network,
        num_data: int,
        prior_std: dict[str, float],
        family: Family = "gaussian",
        degrees_of_freedom: float = 5.0,
    ) -> Posterior:
        """Posterior with one prior standard deviation for each named parameter of the network.

        Raises:
            PriorError: a parameter has no prior, a name is unknown, a σ is not positive, or
                Student's t has no standard deviation.
        """
        if num_data <= 0:
            raise PriorError(f"num_data must be positive, got {num_data}")
        missing = [name for name in network.shapes if name not in prior_std]
        unknown = [name for name in prior_std if name not in network.shapes]
        if missing or unknown:
            raise PriorError(
                f"prior_std must name every parameter: missing {missing}, unknown {unknown}"
            )
        for name, std in prior_std.items():
            if not (std > 0 and math.isfinite(std)):
                raise PriorError(f"prior_std of {name} must be positive and finite, got {std}")
        if not degrees_of_freedom > 2:
            raise PriorError(
                f"degrees_of_freedom must exceed 2, or σ is infinite; got {degrees_of_freedom}"
            )
        stds = [
            torch.full((math.prod(shape),), prior_std[name])
            for name, shape in network.shapes.items()
        ]
        return cls(network, num_data, Prior(family, torch.cat(stds), degrees_of_freedom))

    def logits(self, position: Tensor, images: Tensor) -> Tensor:
        """Logits [B, K] of one weight vector [D] for images [B, C, H, W]."""
        parameters = self.network.unflatten(position.unsqueeze(0))
        logits, _ = self.network.forward(parameters, images)
        return logits.squeeze(1)

    def gradient(self, position: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """∇Ū_B [D] at `position` [D], prior counted once, and the batch's mean NLL in nats."""
        leaf = position.detach().requires_grad_()
        loss = F.cross_entropy(self.logits(leaf, images), labels)
        return self._differentiate(loss, leaf), loss.item()

    def weighted_gradient(
        self, position: Tensor, images: Tensor, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, float, Tensor]:
        """The same of examples that count `weights` [B] / B each, and their |softmax − onehot|²."""
        leaf = position.detach().requires_grad_()
        logits = self.logits(leaf, images)
        loss = F.cross_entropy(logits, labels, reduction="none").mul(weights).mean()
        return self._differentiate(loss, leaf), loss.item(), squared_residuals(logits, labels)

    def target(self, images: Tensor, labels: Tensor) -> Target:
        """Ū_B and ∇Ū_B as functions of one weight vector; of all N images, they are exact."""

        def evaluate(position: Tensor) -> tuple[Tensor, Tensor]:
            gradient, nll = self.gradient(position, images, labels)
            return nll + self.prior.energy(position) / self.num_data, gradient

        return evaluate

    def _differentiate(self, loss: Tensor, leaf: Tensor) -> Tensor:
        """∇Ū of a mean NLL at `leaf`, with the prior's part."""
        (gradient,) = torch.autograd.grad(loss, leaf)
        self.prior.add_gradient(gradient, leaf.detach(), self.num_data)
        return gradient


def squared_residuals(logits: Tensor, labels: Tensor) -> Tensor:
    """|softmax(logits) − onehot(label)|² [B], of the NLL's gradient in logits [B, K]."""
    target = F.one_hot(labels, logits.shape[1])
    return (logits.detach().softmax(1) - target).square().sum(1)
