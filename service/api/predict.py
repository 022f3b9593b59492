"""`POST /predict`: images in, one decision an image out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.api.body import SMALL_BYTES, Upload
from service.api.openapi import PREDICT_BODY, parameters, problems
from service.errors import (
    DeadlineError,
    GateError,
    InvalidError,
    TooLargeError,
    UnavailableError,
    UploadTimeoutError,
)
from service.evidence import Evidence, Floats
from service.gate import Gate
from service.intake import Prepared, Sent, prepare_images
from service.results import certificate, choose_options, encode, model_info, results
from service.scheduler import Outcome
from service.schemas import PredictResponse

# What may be decoded on the event loop: more would hold up the other requests.
SMALL_PIXELS = 256 * 256
SMALL_COUNT = 4

router = APIRouter()


class PredictQuery(BaseModel):
    """Options of one request."""

    model_config = ConfigDict(extra="forbid")

    alpha: float | None = Field(
        None, gt=0, lt=1, description="False-alarm rate of the OOD flag, in place of the policy's."
    )
    fdr: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Of the flags among the images of this request, at most this share is expected "
        "to be false; in place of alpha.",
    )
    policy: str | None = Field(None, description="Name of the policy that decides.")
    explain: bool = Field(False, description="Add the probabilities of each member.")
    top_k: int | None = Field(
        None, ge=1, description="Only the most probable classes, the most probable first."
    )


DEFAULTS = PredictQuery()


@router.post(
    "/predict",
    response_model=PredictResponse,
    responses=problems(400, 408, 413, 415, 422, 500, 503, 504),
    openapi_extra={"parameters": parameters(PredictQuery), "requestBody": PREDICT_BODY},
    summary="Classify images, or abstain",
)
async def predict(request: Request) -> Response:
    """Answer every image with probabilities, where its uncertainty comes from, and a decision.

    Send one image as the body, many as multipart fields named `files`, or JSON. If some of
    several images cannot be read, the others are answered all the same; if none can, the status
    says why.
    """
    state = request.app.state
    gate: Gate = state.gate
    upload = Upload(request, gate.settings, state.buffers, gate.decoders)
    try:
        return await _answer(request, gate, _query(request), upload)
    except GateError as error:
        if reason := _rejection(error, state.draining):
            gate.metrics.rejected.labels(reason).inc()
        raise
    except ClientDisconnect:
        gate.metrics.rejected.labels("cancelled").inc()
        raise
    finally:
        upload.release()


def _query(request: Request) -> PredictQuery:
    """The options, read without FastAPI's dependency machinery, which costs more than the rest."""
    if not request.scope["query_string"]:
        return DEFAULTS
    try:
        return PredictQuery.model_validate(dict(request.query_params))
    except ValidationError as error:
        located = [{**entry, "loc": ("query", *entry["loc"])} for entry in error.errors()]
        raise RequestValidationError(located) from error


async def _answer(request: Request, gate: Gate, query: PredictQuery, upload: Upload) -> Response:
    began = gate.clock()
    model, patience = gate.model, gate.settings.request_timeout_seconds
    request_id: str = request.state.request_id
    policy = query.policy if query.policy is not None else gate.settings.policy
    options = choose_options(model, policy, query.alpha, query.fdr, query.explain, query.top_k)
    try:
        async with asyncio.timeout(patience):
            sent = await upload.images()
    except TimeoutError as error:
        raise UploadTimeoutError(f"the body did not arrive within {patience:g} s") from error
    read = gate.clock()
    deadline = read + patience
    images = await _prepare(gate, sent, upload.size, deadline)
    decoded = gate.clock()
    good = [image.tensor for image in images if isinstance(image, Prepared)]
    if not good:
        raise _none_usable([image for image in images if isinstance(image, GateError)])
    tensor = good[0] if len(good) == 1 else np.concatenate(good)
    outcome = await _infer(request, gate, tensor, deadline)
    answers = results(model, images, outcome.rows, options, request_id)
    gate.metrics.count_results(options.policy_name, answers)
    gate.metrics.queue_wait.observe(outcome.queue_seconds)
    gate.metrics.stages.labels("decode").observe(decoded - read)
    content = {
        "results": answers,
        "model": model_info(model),
        "policy": options.policy_name,
        "certificate": certificate(model, options),
        "request_id": request_id,
        "timing_ms": {
            "decode": round(1000 * (decoded - read), 3),
            "queue": round(1000 * outcome.queue_seconds, 3),
            "infer": round(1000 * outcome.infer_seconds, 3),
            "total": round(1000 * (gate.clock() - began), 3),
        },
    }
    return Response(encode(content), media_type="application/json")


async def _prepare(
    gate: Gate, sent: Sequence[Sent], size: int, deadline: float
) -> list[Prepared | GateError]:
    spec, max_pixels = gate.model.manifest.input, gate.settings.max_pixels
    if size <= SMALL_BYTES and len(sent) <= SMALL_COUNT:
        prepared = prepare_images(sent, spec, min(max_pixels, SMALL_PIXELS))
        if not any(isinstance(image, TooLargeError) for image in prepared):
            return prepared

    def check_time() -> None:
        if gate.clock() >= deadline:
            raise DeadlineError("the images were not decoded within the time limit")

    return await asyncio.get_running_loop().run_in_executor(
        gate.decoders, prepare_images, sent, spec, max_pixels, check_time
    )


async def _infer(
    request: Request, gate: Gate, tensor: Floats, deadline: float
) -> Outcome[Evidence]:
    """Infer, unless the client leaves meanwhile.

    Raises:
        ClientDisconnect: it left; its images are taken out of the queue.
    """
    task = asyncio.current_task()
    assert task is not None
    departure = asyncio.ensure_future(_departure(request))

    def leave(_: object) -> None:
        task.cancel()

    departure.add_done_callback(leave)
    try:
        return await gate.scheduler.submit(tensor, deadline)
    except asyncio.CancelledError:
        if departure.done() and not departure.cancelled():
            task.uncancel()
            raise ClientDisconnect from None
        raise
    finally:
        departure.remove_done_callback(leave)
        departure.cancel()


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _none_usable(errors: Sequence[GateError]) -> GateError:
    first = errors[0]
    if len(errors) == 1:
        return first
    kind = type(first) if len({type(error) for error in errors}) == 1 else InvalidError
    faults = [fault for error in errors for fault in error.faults]
    return kind(f"none of the {len(errors)} images can be used: {first.detail}", *faults)


def _rejection(error: GateError, draining: bool) -> str | None:
    if isinstance(error, UnavailableError):
        return "draining" if draining else "queue_full"
    if isinstance(error, TooLargeError):
        return "payload"
    return "deadline" if isinstance(error, DeadlineError | UploadTimeoutError) else None
