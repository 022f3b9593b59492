"""Minibatch gradients of less variance, by control variates (Baker et al., Stat. Comput. 2019).

With a an anchor where ∇Ū is known exactly, and the same minibatch B on both sides,

    ∇Û(θ) = ∇Ū_B(θ) − ∇Ū_B(a) + ∇Ū(a)

is unbiased, and its variance is that of ∇Ū_B(θ) − ∇Ū_B(a), which falls with |θ − a|²: it pays near
the anchor and costs far from it. With an anchor moved once an epoch it is SVRG (Johnson & Zhang,
NeurIPS 2013; with Langevin noise, Dubey et al., NeurIPS 2016). A step costs two minibatch
gradients, an anchor one gradient over all N examples.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from training.samplers.protocol import Target


@dataclass(frozen=True)
class Anchor:
    """Weights a [D] with Ū(a) [] and ∇Ū(a) [D] over all N examples."""

    position: Tensor
    energy: Tensor
    gradient: Tensor

    @classmethod
    def at(cls, position: Tensor, target: Target) -> Anchor:
        """An anchor at a copy of `position` [D]; `target` is that of all N examples."""
        position = position.detach().clone()
        return cls(position, *target(position))


def anchored(target: Target, anchor: Anchor) -> Target:
    """The target of one minibatch, with the anchor's control variate on Ū and on ∇Ū.

    `target` must see the same examples in both of its calls; the prior may be in it as ever, once.
    """

    def evaluate(position: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = target(position)
        energy_there, gradient_there = target(anchor.position.expand_as(position))
        return (
            energy - energy_there + anchor.energy,
            gradient - gradient_there + anchor.gradient,
        )

    return evaluate
