"""`POST /predict`: images in, one decision an image out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from models.policy import MembersMode
from service.api.answering import Settled, counted, received, settle, tell
from service.api.body import JSON, Upload
from service.api.openapi import PREDICT_BODY, parameters, problems
from service.errors import GateError, together
from service.gate import Gate
from service.results import (
    Options,
    certificate,
    choose_options,
    encode,
    error_of,
    forget_models,
    members_info,
    model_info,
)
from service.schemas import PredictResponse

PATH = "/predict"

router = APIRouter()


class PredictQuery(BaseModel):
    """Options of one request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    explain: bool = Field(
        False, description="Add the probabilities of each member, and what every detector says."
    )
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


class Asked(NamedTuple):
    """What a query asks for, and whether others go first."""

    options: Options
    background: bool


@router.post(
    PATH,
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
    return Response(await answer(request), media_type=JSON)


async def answer(request: Request) -> bytes:
    """The JSON that answers a request.

    Raises:
        GateError: it cannot be answered.
        RequestValidationError: its options are not valid.
        ClientDisconnect: no one waits for the answer any more.
    """
    gate: Gate = request.app.state.gate
    upload = Upload(request, gate.settings, request.app.state.buffers, gate.decoders)
    return await counted(request, upload, _answer(request, gate, upload))


@lru_cache(maxsize=256)
def asked_of(gate: Gate, query: bytes) -> Asked:
    """What a URL's query asks for.

    Raises:
        InvalidError: it cannot be had.
        RequestValidationError: its options are not valid.
    """
    asked = _read(query)
    policy = asked.policy if asked.policy is not None else gate.settings.policy
    options = choose_options(
        gate.model, policy, asked.alpha, asked.fdr, asked.explain, asked.top_k, asked.members
    )
    return Asked(options, asked.background)


def _read(query: bytes) -> PredictQuery:
    try:
        return PredictQuery.model_validate(dict(QueryParams(query)))
    except ValidationError as error:
        located = [{**entry, "loc": ("query", *entry["loc"])} for entry in error.errors()]
        raise RequestValidationError(located) from error


def forget_gates() -> None:
    """Let go of gates, and of their models, that serve no more."""
    asked_of.cache_clear()
    forget_models()


async def _answer(request: Request, gate: Gate, upload: Upload) -> bytes:
    began = gate.clock()
    options, background = asked_of(gate, request.scope["query_string"])
    gate.door.check()
    sent = await received(gate, upload.images())
    with gate.door:
        deadline = gate.clock() + gate.settings.request_timeout_seconds
        settled = await settle(request, gate, options, sent, upload.size, deadline, background)
        return content(gate, options, settled, request.state.request_id, began)


def content(gate: Gate, options: Options, settled: Settled, request_id: str, began: float) -> bytes:
    """The JSON that tells of settled images, for a request that began at a time of the clock.

    Raises:
        GateError: none of them is one.
    """
    errors = [error for case in settled.cases if (error := error_of(case)) is not None]
    if len(errors) == len(settled.cases):
        raise _none_usable(errors)
    answer = {
        "results": tell(gate, options, settled, request_id),
        "model": model_info(gate.model),
        "policy": options.policy_name,
        "members": members_info(gate.model, options),
        "certificate": certificate(gate.model, options),
        "request_id": request_id,
        "timing_ms": {
            "decode": _milliseconds(settled.decode_seconds),
            "queue": _milliseconds(settled.times.queue_seconds),
            "infer": _milliseconds(settled.times.infer_seconds),
            "total": _milliseconds(gate.clock() - began),
        },
    }
    return encode(answer)


def _milliseconds(seconds: float) -> float:
    """To the microsecond."""
    return int(1e6 * seconds) / 1000


def _none_usable(errors: Sequence[GateError]) -> GateError:
    first = errors[0]
    if len(errors) == 1:
        return first
    return together(errors, f"none of the {len(errors)} images can be used: {first.detail}")
