"""The outermost layer of a request: its id, its metrics, and what no one else caught."""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import respond
from service.errors import GateError
from service.metrics import Metrics

HEADER = b"x-request-id"
CLIENT_GONE = 499
UNOBSERVED = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"})

# Drawing each id at random would cost more than all the rest of this layer.
_PROCESS, _COUNT = os.urandom(10).hex(), itertools.count(1)
_SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

log = logging.getLogger("service.access")


class RequestContext:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool) -> None:
        self.app = app
        self.metrics = metrics
        self.access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = given_id(scope["headers"]) or next_id()
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (HEADER, request_id.encode())]
            try:
                await send(message)
            except (OSError, RuntimeError) as error:  # uvloop's word for a closed connection
                status = CLIENT_GONE
                raise ClientDisconnect from error

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            log.debug("%s: the client has gone", request_id, exc_info=True)
        except Exception:
            failure = unexpected(request_id)
            if status:
                raise
            with suppress(ClientDisconnect):
                await respond(failure, request_id)(scope, receive, send_with_id)
        finally:
            if scope["path"] not in UNOBSERVED:
                route = getattr(scope.get("route"), "path", None) or "unmatched"
                code, seconds = status or CLIENT_GONE, time.perf_counter() - began
                observe(
                    self.metrics, self.access_log, request_id, scope["method"], route, code, seconds
                )


def observe(
    metrics: Metrics,
    access_log: bool,
    request_id: str,
    method: str,
    route: str,
    status: int,
    seconds: float,
) -> None:
    """Count a request that is over, and log it if each is to be."""
    metrics.count_request(route, method, status, seconds)
    if access_log:
        log.info("%s %s %s %d %.1f ms", request_id, method, route, status, 1000 * seconds)


def unexpected(request_id: str) -> GateError:
    """Log the exception that is being handled, and say no more of it than where it is."""
    log.exception("%s: unexpected error", request_id)
    return GateError("an error of ours; the log has it under this request_id")


def given_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's id of a request, if it gave a sane one; or none."""
    for name, value in headers:
        if name == HEADER and _SANE.fullmatch(value):
            return str(value, "ascii")
    return ""


def next_id() -> str:
    """An id of ours."""
    return f"{_PROCESS}{next(_COUNT):012x}"
