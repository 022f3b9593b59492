"""A policy turns uncertainty into a decision: accept, or abstain and say why."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from models.uncertainty import Array

Decision = Literal["accept", "abstain"]
Reason = Literal["ood", "uncertain", "input", "certificate", "deadline"]


class Policy(BaseModel):
    """Levels at which the gate abstains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = Field(
        gt=0, lt=1, description="False-alarm rate of the OOD flag on in-distribution images."
    )
    min_probability: float = Field(
        ge=0, lt=1, description="Least probability of the label at which an answer is accepted."
    )
    score: str | None = Field(
        None, description="Detector that raises the OOD flag; the bundle's own by default."
    )


def reasons_to_abstain(
    policy: Policy, probabilities: Array, p_values: Array
) -> list[tuple[Reason, ...]]:
    """Why the policy abstains on each of B images; an empty tuple means accept.

    Args:
        policy: the levels.
        probabilities: p̄ [B, K].
        p_values: conformal p-values of the OOD score [B].

    A probability or p-value that is not a number fails both tests: in doubt the gate abstains.
    """
    familiar: NDArray[np.bool_] = p_values > policy.alpha
    certain: NDArray[np.bool_] = probabilities.max(axis=1) >= policy.min_probability
    reasons: list[tuple[Reason, ...]] = []
    for is_familiar, is_certain in zip(familiar, certain, strict=True):
        ood: tuple[Reason, ...] = () if is_familiar else ("ood",)
        uncertain: tuple[Reason, ...] = () if is_certain else ("uncertain",)
        reasons.append(ood + uncertain)
    return reasons


def decision(reasons: tuple[Reason, ...]) -> Decision:
    """`accept` only when there is no reason to abstain."""
    return "abstain" if reasons else "accept"
