"""`/livez` for the question "restart it?", `/readyz` for "send it requests?"."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from service.schemas import Live, Ready

router = APIRouter()


@router.get("/livez", response_model=Live, summary="Is the process alive?")
async def livez() -> JSONResponse:
    """Answers as long as the event loop runs; it never touches the model."""
    return JSONResponse({"live": True})


@router.get(
    "/readyz",
    response_model=Ready,
    responses={503: {"model": Ready, "description": "Not ready, or draining"}},
    summary="Should requests be sent here?",
)
async def readyz(request: Request) -> JSONResponse:
    """200 when the model is warm and the service is not stopping; `?verbose` lists the checks."""
    gate = getattr(request.app.state, "gate", None)
    checks = {
        "model": gate is not None,
        "scheduler": gate is not None and gate.scheduler.alive,
        "not_draining": not request.app.state.draining,
    }
    ready = all(checks.values())
    content: dict[str, object] = {"ready": ready}
    if "verbose" in request.query_params:
        content["checks"] = checks
    return JSONResponse(content, 200 if ready else 503)
