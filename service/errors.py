"""What can go wrong, and the one HTTP status of each.

    GateError                        a request that is not answered
    ├── MalformedError         400   the body is no JSON, no multipart form
    ├── UploadTimeoutError     408   the body did not arrive in time
    ├── TooLargeError          413   too many bytes, pixels or images
    ├── UnsupportedMediaError  415   a media type or image format that is not accepted
    ├── InvalidError           422   well-formed, but no image or option that can be used
    ├── InferenceError         500   a fault of ours
    ├── UnavailableError       503   overloaded or stopping; come back after `retry_after` seconds
    └── DeadlineError          504   no answer within `request_timeout_seconds`

    StartupError                     a service that must not start; the message is one line
    ├── SettingsError                an option is unknown, invalid or contradicts another
    ├── EngineError                  the runtime or device asked for is not there
    └── ModelError                   the bundle is unverified, or fails its self-test

A `GateError` becomes `application/problem+json` (RFC 9457) in `service.api.problems`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True)
class Fault:
    """One field that is wrong.

    Attributes:
        pointer: where, as a JSON pointer that begins with `/body`, `/query` or `/header`.
        message: what is wrong with it.
        limit: the limit that it exceeds, if there is one.
    """

    pointer: str
    message: str
    limit: float | None = None

    def as_dict(self) -> dict[str, object]:
        """The fault as JSON; `limit` only where there is one."""
        content: dict[str, object] = {"pointer": self.pointer, "message": self.message}
        if self.limit is not None:
            content["limit"] = self.limit
        return content


class GateError(Exception):
    """A request, or one image of it, that is not answered.

    Attributes:
        status: the HTTP status.
        kind: last part of the problem's `type`.
        title: what all problems of this kind have in common.
        detail: what is wrong this time.
        faults: the fields that are wrong.
        limit: the limit that is exceeded, if that is what is wrong.
        retry_after: seconds after which a second try makes sense, if one does.
    """

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *faults: Fault,
        limit: float | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.faults = faults
        self.limit = limit
        self.retry_after = retry_after

    def at(self, pointer: str) -> Self:
        """The same error, saying where in the request it lies; deeper faults keep their place."""
        if self.faults:
            faults = tuple(
                Fault(pointer + fault.pointer, fault.message, fault.limit) for fault in self.faults
            )
        else:
            faults = (Fault(pointer, self.detail, self.limit),)
        return type(self)(self.detail, *faults, limit=self.limit, retry_after=self.retry_after)


def together(errors: Sequence[GateError], detail: str) -> GateError:
    """One error in place of several, with all their faults: of their kind, if they share one."""
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else InvalidError
    faults = [fault for error in errors for fault in error.faults]
    return kind(detail, *faults, limit=errors[0].limit)


class MalformedError(GateError):
    """The body cannot be parsed."""

    status, kind, title = 400, "malformed-body", "The body cannot be parsed"


class UploadTimeoutError(GateError):
    """The body did not arrive in time."""

    status, kind, title = 408, "upload-timeout", "The body did not arrive in time"


class TooLargeError(GateError):
    """Too many bytes, pixels or images."""

    status, kind, title = 413, "too-large", "The request exceeds a limit"


class UnsupportedMediaError(GateError):
    """A media type or image format that is not accepted."""

    status, kind, title = 415, "unsupported-media-type", "The media type is not accepted"


class InvalidError(GateError):
    """Well-formed, but no image or option that can be used."""

    status, kind, title = 422, "invalid-input", "The input cannot be used"


class InferenceError(GateError):
    """The model raised, or gave numbers that are not finite."""

    status, kind, title = 500, "inference-failed", "The model failed on this input"


class UnavailableError(GateError):
    """Overloaded, or stopping."""

    status, kind, title = 503, "unavailable", "The service cannot take the request now"


class DeadlineError(GateError):
    """No answer in time."""

    status, kind, title = 504, "deadline-exceeded", "No answer within the time limit"


class StartupError(Exception):
    """A service that must not start."""


class SettingsError(StartupError):
    """An option is unknown, invalid or contradicts another."""


class EngineError(StartupError):
    """The runtime or device asked for is not there."""


class ModelError(StartupError):
    """The bundle is unverified, or fails its self-test."""
