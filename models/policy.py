"""A policy turns uncertainty into a decision: accept, or abstain and say why."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from models.uncertainty import Array

Decision = Literal["accept", "abstain"]
Reason = Literal["ood", "uncertain", "input", "certificate", "deadline"]
MembersMode = Literal["all", "exact", "confident"]


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, float | int) else value


SettledAt = Annotated[
    tuple[Annotated[float, Field(gt=0, lt=1)], ...],
    BeforeValidator(_one_or_more),
    Field(min_length=1),
]
"""Probabilities, one for each time that a policy looks, the last for all further times."""


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
    alpha_confidence: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Confidence that this calibration set keeps alpha; by default it is kept on "
        "average over calibration sets.",
    )
    conditional_on: Literal["class"] | None = Field(
        None, description="Keep alpha within each predicted class, not on average over classes."
    )
    members: MembersMode = Field(
        "all",
        description="How many members an image is shown to: all; as many as settle the decision of "
        "all, whatever the others may say (exact); or as many as make the label's mean probability "
        "`settled_at` (confident).",
    )
    settled_at: SettledAt | None = Field(
        None,
        description="Of members = confident: after the first group of members, after four groups, "
        "sixteen and so on, the last for all further times; one number is for all times. None is "
        "below `min_probability`.",
    )

    @model_validator(mode="after")
    def _one_promise(self) -> Self:
        if self.alpha_confidence is not None and self.conditional_on is not None:
            raise ValueError("give either alpha_confidence or conditional_on")
        return self

    @model_validator(mode="after")
    def _settled_when_confident(self) -> Self:
        if (self.members == "confident") != (self.settled_at is not None):
            raise ValueError("settled_at goes with members = confident, and that with settled_at")
        if self.settled_at is not None and min(self.settled_at) < self.min_probability:
            raise ValueError("settled_at must not be below min_probability")
        return self

    def asking(self, members: Literal["all", "exact"]) -> Self:
        """The same levels with so many members in place of its own."""
        return self.model_copy(update={"members": members, "settled_at": None})


def reasons_to_abstain(
    policy: Policy, probabilities: Array, p_values: Array, level: float
) -> list[tuple[Reason, ...]]:
    """Why the policy abstains on each of B images; an empty tuple means accept.

    Args:
        policy: the levels.
        probabilities: p̄ [B, K].
        p_values: conformal p-values of the OOD score [B].
        level: of the OOD flag, which is raised at p ≤ level: that of `models.calibration`, or of
            `models.conformal.benjamini_hochberg`.

    A probability or p-value that is not a number fails both tests: in doubt the gate abstains.
    """
    familiar: NDArray[np.bool_] = p_values > level
    certain: NDArray[np.bool_] = probabilities.max(axis=1) >= policy.min_probability
    reasons: list[tuple[Reason, ...]] = []
    for is_familiar, is_certain in zip(familiar.tolist(), certain.tolist(), strict=True):
        ood: tuple[Reason, ...] = () if is_familiar else ("ood",)
        uncertain: tuple[Reason, ...] = () if is_certain else ("uncertain",)
        reasons.append(ood + uncertain)
    return reasons


def decision(reasons: tuple[Reason, ...]) -> Decision:
    """`accept` only when there is no reason to abstain."""
    return "abstain" if reasons else "accept"
