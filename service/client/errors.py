"""Why there is no answer to act on, and the reason with which `gate` abstains then.

GateClientError
├── ConnectError           unavailable   no complete answer: refused, reset, closed midway
├── DeadlineError          deadline      no answer within the timeout
├── StatusError            by status     the service answered with an error
├── MalformedAnswerError   malformed     a complete answer, but none of the gate's
├── ModelMismatchError     model         another model than the one that was pinned
└── CertificateError       certificate   a certificate is required, and none is valid
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BY_STATUS = {
    400: "input",
    408: "deadline",
    413: "input",
    415: "input",
    422: "input",
    504: "deadline",
}


class GateClientError(Exception):
    """There is no answer to act on.

    Attributes:
        reason: with which `gate` abstains.
        request_id: by which the service's log knows the request, if it answered at all.
    """

    reason: str = "unavailable"
    request_id: str | None = None


class ConnectError(GateClientError):
    """No complete answer arrived: the connection was refused, reset or closed midway."""


class DeadlineError(GateClientError):
    """No answer arrived within the timeout."""

    reason = "deadline"


class MalformedAnswerError(GateClientError):
    """A complete answer that is not JSON, lacks a field, or contradicts itself."""

    reason = "malformed"


class ModelMismatchError(GateClientError):
    """Another model answered than the one that `expected_digest` pins."""

    reason = "model"


class CertificateError(GateClientError):
    """`require_certificate`, but no valid certificate covers the answer."""

    reason = "certificate"


class StatusError(GateClientError):
    """The service, or something before it, answered with an error.

    Attributes:
        status: the HTTP status.
        problem: the problem object (RFC 9457); empty if the answer holds none.
        retry_after: seconds after which a second try makes sense, if the answer says so.
    """

    def __init__(
        self, status: int, problem: Mapping[str, Any], retry_after: int | None = None
    ) -> None:
        detail = problem.get("detail")
        super().__init__(f"status {status}: {detail}" if detail else f"status {status}")
        self.status = status
        self.problem = problem
        self.retry_after = retry_after
        self.reason = _reason(status, problem)
        request_id = problem.get("request_id")
        self.request_id = request_id if isinstance(request_id, str) else None


def _reason(status: int, problem: Mapping[str, Any]) -> str:
    if not 400 <= status <= 599:
        return "malformed"
    if status >= 500:
        return _BY_STATUS.get(status, "unavailable")
    reason = _BY_STATUS.get(status, "rejected")
    return "rejected" if reason == "input" and _blames_options(problem) else reason


def _blames_options(problem: Mapping[str, Any]) -> bool:
    """Whether an option of the request is wrong, rather than the image."""
    faults = problem.get("errors")
    return isinstance(faults, list) and any(
        isinstance(fault, dict) and str(fault.get("pointer")).startswith("/query")
        for fault in faults
    )
