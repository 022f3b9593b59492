"""`POST /predict`: images in, one decision an image out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from models.policy import MembersMode
from service.api.body import SMALL_BYTES, Upload
from service.api.openapi import PREDICT_BODY, parameters, problems
from service.cases import Case
from service.errors import (
    DeadlineError,
    GateError,
    InvalidError,
    TooLargeError,
    UnavailableError,
    UploadTimeoutError,
)
from service.evidence import Floats
from service.gate import Gate
from service.intake import Prepared, Sent, prepare_images
from service.results import (
    Options,
    certificate,
    choose_options,
    encode,
    members_info,
    model_info,
    results,
)
from service.scheduler import Times
from service.schemas import PredictResponse

# What may be decoded on the event loop: more would hold up the other requests.
SMALL_PIXELS = 256 * 256
SMALL_COUNT = 4

# A body that is answered sooner than this is not worth watching for its client's departure.
WATCH_AFTER_SECONDS = 0.02


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
    members: MembersMode | None = Field(
        None,
        description="How many members an image is shown to, in place of the policy's: all, exact, "
        "or confident where the policy is.",
    )
    background: bool = Field(
        False, description="Let the images of others, and of your other requests, go first."
    )
    top_k: int | None = Field(
        None, ge=1, description="Only the most probable classes, the most probable first."
    )


DEFAULTS = PredictQuery()
NO_TIME = Times(0.0, 0.0)


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
    """The options."""
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
    policy = query.policy if query.policy is not None else gate.settings.policy
    options = choose_options(
        model, policy, query.alpha, query.fdr, query.explain, query.top_k, query.members
    )
    try:
        async with asyncio.timeout(patience):
            sent = await upload.images()
    except TimeoutError as error:
        raise UploadTimeoutError(f"the body did not arrive within {patience:g} s") from error
    with gate.door:
        return await _respond(request, gate, query, options, sent, upload.size, began)


async def _respond(
    request: Request,
    gate: Gate,
    query: PredictQuery,
    options: Options,
    sent: Sequence[Sent],
    size: int,
    began: float,
) -> Response:
    """The answer to images that have been read, of so many bytes, by a request that `began`."""
    model, request_id = gate.model, request.state.request_id
    read = gate.clock()
    deadline = read + gate.settings.request_timeout_seconds
    images = await _prepare(gate, sent, size, deadline)
    decoded = gate.clock()
    tensors = [image.tensor for image in images if isinstance(image, Prepared)]
    if not tensors:
        raise _none_usable([image for image in images if isinstance(image, GateError)])
    cases = [_case(gate, options, tensor) for tensor in tensors]
    new = [case for case in cases if not case.settled]
    times = await _infer(request, gate, new, deadline, query.background) if new else NO_TIME
    for case in new:
        gate.cache.put(gate.cache.key(model.bundle.digest, case.rule, case.image), case.answer)
    answers = results(model, images, [case.answer for case in cases], options, request_id)
    gate.metrics.count_results(options.policy_name, answers)
    gate.metrics.queue_wait.observe(times.queue_seconds)
    gate.metrics.stages.labels("decode").observe(decoded - read)
    content = {
        "results": answers,
        "model": model_info(model),
        "policy": options.policy_name,
        "members": members_info(model, options),
        "certificate": certificate(model, options),
        "request_id": request_id,
        "timing_ms": {
            "decode": round(1000 * (decoded - read), 3),
            "queue": round(1000 * times.queue_seconds, 3),
            "infer": round(1000 * times.infer_seconds, 3),
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


def _case(gate: Gate, options: Options, tensor: Floats) -> Case:
    """An image on its way, or at its end already if it was seen before."""
    known = gate.cache.get(gate.cache.key(gate.model.bundle.digest, options.rule, tensor))
    if known is not None:
        gate.metrics.cache_hits.inc()
    return Case(tensor, options.rule, evidence=known)


async def _infer(
    request: Request, gate: Gate, cases: Sequence[Case], deadline: float, background: bool
) -> Times:
    """Infer, unless the client leaves meanwhile.

    Raises:
        ClientDisconnect: it left; its images are taken out of the queue.
    """
    task = asyncio.current_task()
    assert task is not None
    departure: asyncio.Future[None] | None = None

    def leave(_: object) -> None:
        task.cancel()

    def watch() -> None:
        nonlocal departure
        departure = asyncio.ensure_future(_departure(request))
        departure.add_done_callback(leave)

    timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, watch)
    client = request.client.host if request.client else ""
    try:
        return await gate.scheduler.submit(cases, deadline, client=client, background=background)
    except asyncio.CancelledError:
        if departure is not None and departure.done() and not departure.cancelled():
            task.uncancel()
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        if departure is not None:
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
