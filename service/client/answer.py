"""What a caller acts on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from service.client.errors import GateClientError


@dataclass(frozen=True)
class Uncertainty:
    """How sure the ensemble is, in nats.

    Attributes:
        predictive_entropy: H[mean p], the total.
        expected_entropy: mean H[p]: the image is ambiguous.
        mutual_information: their difference: the members disagree.
    """

    predictive_entropy: float
    expected_entropy: float
    mutual_information: float


@dataclass(frozen=True)
class Ood:
    """Whether the image is unlike the training data.

    Attributes:
        flag: it is, at the policy's level.
        p_value: small means unlike the training data.
    """

    flag: bool
    p_value: float


@dataclass(frozen=True)
class Answer:
    """The answer to one image, or why there is none.

    Attributes:
        decision: `accept` or `abstain`.
        reasons: why it abstains; empty on `accept`. The service's are `ood`, `uncertain`, `input`,
            `certificate` and `deadline`; the client's own are `deadline`, `unavailable`,
            `rejected`, `malformed`, `model`, `certificate` and `input`.
        label: the most probable class.
        probabilities: mean over members of probabilities, by label.
        uncertainty: None if the image was not answered.
        ood: None if the image was not answered.
        prediction_set: the labels that the image may have, the most probable first.
        members_used: members that the label rests on.
        request_id: by which the service's log knows the request.
        model_digest: `sha256:...` of the bundle that answered.
        certificate: what was proved of the policy, as the service says it; None if nothing was.
        error: what went wrong, in words.
        raw: the result as it was sent; empty if none was.
    """

    decision: Literal["accept", "abstain"]
    reasons: tuple[str, ...] = ()
    label: str | None = None
    probabilities: Mapping[str, float] | None = None
    uncertainty: Uncertainty | None = None
    ood: Ood | None = None
    prediction_set: tuple[str, ...] | None = None
    members_used: int = 0
    request_id: str | None = None
    model_digest: str | None = None
    certificate: Mapping[str, Any] | None = None
    error: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def accepted(self) -> bool:
        """Whether the label may be acted on."""
        return self.decision == "accept"


def abstention(error: GateClientError) -> Answer:
    """The answer that stands in for one that did not come."""
    return Answer("abstain", (error.reason,), request_id=error.request_id, error=str(error))
