"""`GET /models`: what is served."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from service.results import model_details
from service.schemas import ModelList

router = APIRouter()


@router.get("/models", response_model=ModelList, summary="The models that are served")
async def models(request: Request) -> JSONResponse:
    """Name, digest, labels, input, policies and how each model is run."""
    gate = request.app.state.gate
    return JSONResponse({"models": [model_details(gate.model, gate.settings.policy)]})
