"""The shortest way to `POST /predict`: no router, no dependencies, the same endpoint and errors.

The layers of a framework cost more than an image that shares its step with others. All other
requests, and the API's description, go through FastAPI.
"""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import predict
from service.api.context import RequestContext
from service.api.problems import respond, respond_invalid
from service.errors import GateError
from service.metrics import Metrics

PATH = "/predict"


class Express:
    """ASGI middleware, the outermost: answers `POST /predict` itself."""

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool) -> None:
        self._app = app
        self._predict = RequestContext(_answer, metrics, access_log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST":
            (scope["route"],) = predict.router.routes
            await self._predict(scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive, send)
    try:
        response = await predict.predict(request)
    except GateError as error:
        response = respond(error, request.state.request_id)
    except RequestValidationError as error:
        response = respond_invalid(error, request.state.request_id)
    await response(scope, receive, send)
