"""Every error becomes `application/problem+json`; no traceback reaches a client."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.api.heads import Header
from service.errors import Fault, GateError, InvalidError
from service.results import Json, encode, problem

MEDIA_TYPE = "application/problem+json"

_CONTENT_TYPE = (b"content-type", MEDIA_TYPE.encode())
_LIMITS = ("gt", "ge", "lt", "le")


def add_handlers(app: FastAPI) -> None:
    """Answer every error that a route or the router raises."""
    app.add_exception_handler(GateError, _on_gate_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


def respond(error: GateError, request_id: str) -> Response:
    """The response for an error of ours."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return _response(problem(error, request_id), headers)


def respond_invalid(error: RequestValidationError, request_id: str) -> Response:
    """The response for options that are not valid."""
    faults = [_fault(entry) for entry in error.errors()]
    first = faults[0]
    invalid = InvalidError(f"{first.pointer.lstrip('/')}: {first.message}", *faults)
    return respond(invalid, request_id)


def raw_response(error: GateError, request_id: str) -> tuple[int, list[Header], bytes]:
    """Status, headers but for its length, and body of the same."""
    headers = [_CONTENT_TYPE]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    return error.status, headers, encode(problem(error, request_id))


def _response(content: Json, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(content), content["status"], headers, MEDIA_TYPE)


def _on_gate_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GateError)
    return respond(error, request.state.request_id)


def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return respond_invalid(error, request.state.request_id)


def _fault(entry: Mapping[str, Any]) -> Fault:
    context = entry.get("ctx", {})
    limit = next((context[name] for name in _LIMITS if name in context), None)
    return Fault("/" + "/".join(map(str, entry["loc"])), entry["msg"], limit)


def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    detail = str(error.detail)
    if detail == title:
        detail = f"{title}: {request.method} {request.url.path}"
    content = {
        "type": "about:blank",
        "title": title,
        "status": error.status_code,
        "detail": detail,
        "error": detail,
        "request_id": request.state.request_id,
    }
    return _response(content, error.headers)
