"""The shortest way to `POST /predict`: no router, no dependencies, the same endpoint and errors.

The layers of a framework cost more than an image that shares its step with others. All other
requests, and the API's description, go through FastAPI.
"""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from service.api import predict
from service.api.body import JSON
from service.api.context import RequestContext
from service.api.problems import respond, respond_invalid
from service.errors import GateError

PATH = "/predict"
CONTENT_TYPE = (b"content-type", JSON.encode())


class Express:
    """ASGI application in front of FastAPI's: answers `POST /predict` itself, as that would.

    Attributes:
        state: of the application behind it.
    """

    def __init__(self, app: FastAPI, access_log: bool) -> None:
        self.state = app.state
        self._app = app
        self._predict = RequestContext(_answer, app.state.metrics, access_log)
        (self._route,) = predict.router.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST":
            scope["app"], scope["route"] = self._app, self._route
            await self._predict(scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive, send)
    try:
        body = await predict.answer(request)
    except GateError as error:
        await respond(error, request.state.request_id)(scope, receive, send)
    except RequestValidationError as error:
        await respond_invalid(error, request.state.request_id)(scope, receive, send)
    else:
        headers = [CONTENT_TYPE, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
