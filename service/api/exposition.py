"""`GET /metrics`, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from service.metrics import CONTENT_TYPE

router = APIRouter()


@router.get("/metrics", response_class=PlainTextResponse, summary="Metrics for Prometheus")
async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    return Response(request.app.state.metrics.text(), headers={"Content-Type": CONTENT_TYPE})
