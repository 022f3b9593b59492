"""A complete HTTP answer → `Answer`s, or the error that it amounts to."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from service.client.answer import Answer, Ood, Uncertainty
from service.client.errors import (
    CertificateError,
    MalformedAnswerError,
    ModelMismatchError,
    StatusError,
)

# An answer of more bytes is not read: 256 images with the probabilities of each member take fewer.
MAX_ANSWER_BYTES = 64 * 2**20

T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """A complete HTTP answer.

    Attributes:
        status: the HTTP status.
        headers: by name in lower case.
        body: decoded.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def retry_after(self) -> int | None:
        """The header's seconds; None without it, or if it is a date."""
        value = self.headers.get("retry-after", "")
        return int(value) if value.isdecimal() and len(value) < 10 else None


@dataclass(frozen=True)
class Terms:
    """What the caller asks of an answer beyond being well-formed.

    Attributes:
        expected_digest: `sha256:...` of the one bundle whose answers count.
        require_certificate: whether only answers with a valid certificate count.
    """

    expected_digest: str | None = None
    require_certificate: bool = False


def read_answers(reply: Reply, count: int, terms: Terms) -> list[Answer]:
    """The answers to `count` images, in order.

    Raises:
        StatusError: the status is not 200.
        MalformedAnswerError: it is not JSON, lacks a field, or contradicts itself.
        ModelMismatchError: another model answered than the terms pin.
        CertificateError: the terms require a certificate, and none is valid.
    """
    media_type = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if reply.status != 200:
        problem = _problem(reply.body) if media_type == "application/problem+json" else {}
        raise StatusError(reply.status, problem, reply.retry_after)
    if media_type != "application/json":
        raise MalformedAnswerError(f"the answer is {media_type or 'of no type'}, not JSON")
    document = _parse(reply.body)
    digest = _get(_get(document, "model", dict), "digest", str)
    request_id = _get(document, "request_id", str)
    certificate = _optional(document, "certificate", dict)
    results = _get(document, "results", list)
    if len(results) != count:
        raise MalformedAnswerError(f"{len(results)} results for {count} images")
    answers = [_answer(result, request_id, digest, certificate) for result in results]
    _check(terms, digest, certificate, request_id)
    return answers


def _check(
    terms: Terms, digest: str, certificate: Mapping[str, Any] | None, request_id: str
) -> None:
    error: ModelMismatchError | CertificateError
    if terms.expected_digest not in (None, digest):
        error = ModelMismatchError(f"{digest} answered; {terms.expected_digest} was expected")
    elif terms.require_certificate and (certificate or {}).get("status") != "valid":
        status = "no certificate" if certificate is None else f"status {certificate.get('status')}"
        error = CertificateError(f"a valid certificate is required; there is {status}")
    else:
        return
    error.request_id = request_id
    raise error


def _answer(
    result: object, request_id: str, digest: str, certificate: Mapping[str, Any] | None
) -> Answer:
    decision = _get(result, "decision", str)
    uncertainty = _optional(result, "uncertainty", dict)
    ood = _optional(result, "ood", dict)
    error = _optional(result, "error", dict)
    probabilities = _optional(result, "probabilities", dict)
    prediction_set = _optional(result, "prediction_set", list)
    answer = Answer(
        decision="accept" if decision == "accept" else "abstain",
        reasons=_texts(_get(result, "reasons", list)),
        label=_optional(result, "label", str),
        probabilities=None
        if probabilities is None
        else {label: _number(probabilities, label, 1.0) for label in probabilities},
        uncertainty=None
        if uncertainty is None
        else Uncertainty(
            predictive_entropy=_number(uncertainty, "predictive_entropy"),
            expected_entropy=_number(uncertainty, "expected_entropy"),
            mutual_information=_number(uncertainty, "mutual_information"),
        ),
        ood=None if ood is None else Ood(_get(ood, "flag", bool), _number(ood, "p_value", 1.0)),
        prediction_set=None if prediction_set is None else _texts(prediction_set),
        members_used=_get(result, "members_used", int),
        request_id=request_id,
        model_digest=digest,
        certificate=certificate,
        error=None if error is None else _get(error, "detail", str),
        raw=result if isinstance(result, dict) else {},
    )
    if decision not in ("accept", "abstain"):
        raise MalformedAnswerError(f"an unknown decision: {decision[:40]!r}")
    if answer.accepted:
        _check_accepted(answer)
    elif not answer.reasons:
        raise MalformedAnswerError("it abstains without a reason")
    return answer


def _check_accepted(answer: Answer) -> None:
    if answer.reasons or answer.error is not None or answer.members_used < 1:
        raise MalformedAnswerError("it accepts, and says why it should not")
    if not answer.uncertainty or not answer.ood or answer.label not in (answer.probabilities or {}):
        raise MalformedAnswerError("it accepts without saying on what grounds")
    if answer.ood.flag:
        raise MalformedAnswerError("it accepts an image that it flags")


def _parse(body: bytes) -> object:
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise MalformedAnswerError(f"the answer is not JSON: {error}") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON's")


def _problem(body: bytes) -> Mapping[str, Any]:
    try:
        document = _parse(body)
    except MalformedAnswerError:
        return {}
    return document if isinstance(document, dict) else {}


def _get(content: object, name: str, kind: type[T]) -> T:
    """A field of this type; a bool is no int."""
    value = content.get(name) if isinstance(content, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise MalformedAnswerError(f"{name[:40]!r} is missing, or no {kind.__name__}")
    return value


def _optional(content: object, name: str, kind: type[T]) -> T | None:
    """A field that may be null, but not missing."""
    if isinstance(content, dict) and name in content and content[name] is None:
        return None
    return _get(content, name, kind)


def _number(content: Mapping[str, Any], name: str, most: float = sys.float_info.max) -> float:
    value = content.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
        raise MalformedAnswerError(f"{name[:40]!r} is missing, or no number in range")
    return float(value)


def _texts(values: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in values):
        raise MalformedAnswerError("a list holds what is no text")
    return tuple(values)
