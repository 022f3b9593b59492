"""Constant-step SGD as an approximate posterior (Mandt, Hoffman & Blei, JMLR 18, 2017).

    θ ← θ − η P ∇Ū_B(θ)

injects no noise: minibatch noise alone keeps it moving. Near a mode with Hessian A of Ū and
covariance V of one example's gradient, batches of B drawn with replacement, it is to first order in
η an Ornstein-Uhlenbeck process whose covariance Σ solves

    Σ A P + P A Σ = (η / B) P V P        (P symmetric).

How near it is to the posterior's (N A)⁻¹:

    scalar      η = 2 B D / (N tr V)           the η of least Kullback-Leibler divergence from it
    diagonal    P_kk = 2 B / (N V_kk), η = 1   nearer, unless V is far from diagonal
    full        P = (2 B / N) V⁻¹, η = 1       equal: Σ A P + P A Σ = (2 / N) P

At long steps, or where V changes with θ, nothing is promised: these weights are a baseline. Of n
gradients, V is the covariance with divisor n, as batches drawn with replacement see it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.samplers.limits import step_size_at
from training.samplers.protocol import Info, Target
from training.schedules import Schedule


@dataclass(frozen=True)
class ConstantSGDState:
    """What the next step needs: the weights [..., D], changed in place, and the step's index."""

    position: Tensor
    step: int


@dataclass(frozen=True)
class ConstantSGD:
    """SGD at a constant step. Its law is that of the minibatches; it has no temperature of its own.

    Attributes:
        schedule: step size η_t, `training.schedules.constant` for the law above.
        preconditioner: P, diagonal [D] or symmetric [D, D]; None is the identity.

    Raises:
        ValueError: P has other than one or two axes, or is not finite; and a step size that
            `training.samplers.limits` refuses.
    """

    schedule: Schedule
    preconditioner: Tensor | None = None

    def __post_init__(self) -> None:
        if self.preconditioner is not None and not (
            self.preconditioner.ndim in (1, 2) and bool(self.preconditioner.isfinite().all())
        ):
            raise ValueError("preconditioner must be a finite diagonal [D] or matrix [D, D]")

    def init(self, position: Tensor, step: int = 0) -> ConstantSGDState:
        """Start at a copy of `position` [..., D], with step index `step`."""
        return ConstantSGDState(position.detach().clone(), step)

    def step(self, state: ConstantSGDState, target: Target) -> tuple[ConstantSGDState, Info]:
        """Take one step."""
        step_size = step_size_at(self.schedule, state.step)
        position = state.position
        energy, force = target(position)
        info = Info(energy, position * force, step_size)
        match self.preconditioner:
            case None:
                position.add_(force, alpha=-step_size)
            case diagonal if diagonal.ndim == 1:
                position.addcmul_(force, diagonal, value=-step_size)
            case matrix:
                position.sub_(force @ matrix, alpha=step_size)
        return ConstantSGDState(position, state.step + 1), info


def optimal_step_size(gradients: Tensor, num_data: int, batch_size: int) -> float:
    """η = 2 B D / (N tr V), from one gradient an example at the mode, [n, D].

    Raises:
        ValueError: the gradients are all equal, so that their noise has no scale.
    """
    return 2 * batch_size / (num_data * _variance(gradients).mean().item())


def optimal_diagonal(gradients: Tensor, num_data: int, batch_size: int) -> Tensor:
    """P_kk = 2 B / (N V_kk), [D], to be used with η = 1; gradients [n, D] as above.

    Raises:
        ValueError: a weight has the same gradient in all examples.
    """
    return 2 * batch_size / (num_data * _variance(gradients))


def optimal_matrix(gradients: Tensor, num_data: int, batch_size: int) -> Tensor:
    """P = (2 B / N) V⁻¹, [D, D], to be used with η = 1; gradients [n, D] as above.

    Raises:
        ValueError: V is singular: use more examples than weights.
    """
    covariance = torch.atleast_2d(gradients.T.cov(correction=0))
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise ValueError(
            f"the covariance of {len(gradients)} gradients of {len(covariance)} weights is "
            "singular: use more examples, or the diagonal"
        )
    return torch.cholesky_inverse(factor).mul_(2 * batch_size / num_data)


def _variance(gradients: Tensor) -> Tensor:
    variance = gradients.var(dim=0, correction=0)
    if not bool((variance > 0).all()):
        raise ValueError("gradients of some weight do not vary from example to example: drop it")
    return variance
