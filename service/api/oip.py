"""The Open Inference Protocol v2, for clients of KServe and Triton: `/v2`."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api import health
from service.api.answering import counted, received, settle, tell
from service.api.body import BINARY, JSON, Upload
from service.api.openapi import problems, reference
from service.cases import Case
from service.errors import Fault, GateError, InvalidError, together
from service.gate import Gate
from service.oip import Question, metadata, offered, read_question, write_answer
from service.oip.schemas import (
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelReady,
    ServerMetadata,
)
from service.repository import Model
from service.results import Json, Options, choose_options, error_of, model_info, not_finite
from service.schemas import Live, Ready

EXTENSIONS = ("binary_tensor_data",)
JSON_SIZE = "Inference-Header-Content-Length"

router = APIRouter(tags=["Open Inference Protocol"])

router.get("/v2/health/live", response_model=Live, summary="Is the process alive?")(health.livez)
router.get(
    "/v2/health/ready",
    response_model=Ready,
    responses={503: {"model": Ready, "description": "Not ready, or draining"}},
    summary="Should requests be sent here?",
)(health.readyz)


@router.get("/v2", response_model=ServerMetadata, summary="The server")
async def server(request: Request) -> JSONResponse:
    """Name, version and extensions of the protocol."""
    app = request.app
    content = {"name": "langevin-gate", "version": app.version, "extensions": EXTENSIONS}
    return JSONResponse(content)


async def model(request: Request) -> JSONResponse:
    """Its tensors; −1 stands for a length that varies."""
    return JSONResponse(metadata(_served(request)))


async def ready(request: Request) -> JSONResponse:
    """200 when the model is warm and the service is not stopping."""
    name = _served(request).manifest.name
    status = (await health.readyz(request)).status_code
    return JSONResponse({"name": name, "ready": status == 200}, status)


async def infer(request: Request) -> Response:
    """Answer images with tensors, in JSON or in bytes.

    If one of several images cannot be used, none is answered, and the error names it.
    """
    gate: Gate = request.app.state.gate
    upload = Upload(request, gate.settings, request.app.state.buffers, gate.decoders)
    return await counted(request, upload, _answer(request, gate, _served(request), upload))


_BYTES = {BINARY: {"schema": {"type": "string", "format": "binary"}}}
_BODY = {
    "required": True,
    "content": {JSON: {"schema": reference(InferRequest)}, **_BYTES},
}


def _parameters(*names: str) -> list[Json]:
    schema = {"type": "string"}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]


for _path, _names in (
    ("/v2/models/{name}", ("name",)),
    ("/v2/models/{name}/versions/{version}", ("name", "version")),
):
    _described: Json = {"parameters": _parameters(*_names)}
    router.get(
        _path,
        response_model=ModelMetadata,
        responses=problems(404),
        openapi_extra=_described,
        summary="A model's tensors",
    )(model)
    router.get(
        f"{_path}/ready",
        response_model=ModelReady,
        responses={
            **problems(404),
            503: {"model": ModelReady, "description": "Not ready, or draining"},
        },
        openapi_extra=_described,
        summary="Can the model be asked?",
    )(ready)
    router.post(
        f"{_path}/infer",
        response_model=InferResponse,
        responses={
            **problems(400, 404, 408, 413, 415, 422, 500, 503, 504),
            200: {"content": _BYTES},
        },
        openapi_extra={**_described, "requestBody": _BODY},
        summary="Classify images, or abstain, in tensors",
    )(infer)


def _served(request: Request) -> Model:
    """The model that the path names."""
    served: Model = request.app.state.gate.model
    asked, manifest = request.path_params, served.manifest
    if asked["name"] != manifest.name:
        raise HTTPException(404, f"there is no model {asked['name']!r}; it is {manifest.name!r}")
    if asked.get("version", manifest.version) != manifest.version:
        raise HTTPException(
            404, f"there is no version {asked['version']!r}; it is {manifest.version!r}"
        )
    return served


async def _answer(request: Request, gate: Gate, model: Model, upload: Upload) -> Response:
    gate.door.check()
    body = await received(gate, upload.body())
    read = gate.clock()
    with gate.door:
        json_size = request.headers.get(JSON_SIZE)
        question = await upload.parse(read_question, body, json_size, offered(model), gate.settings)
        return await _respond(request, gate, model, question, len(body), read)


async def _respond(
    request: Request, gate: Gate, model: Model, question: Question, size: int, read: float
) -> Response:
    """The answer to a question that was `read`, in a body of so many bytes."""
    asked, request_id = question.parameters, request.state.request_id
    options = _options(model, gate.settings.policy, question)
    patience = gate.settings.request_timeout_seconds
    deadline = read + min(patience, asked.timeout / 1e6 or patience)
    settled = await settle(
        request, gate, options, question.images, size, deadline, asked.background
    )
    faults = ((index, _fault_of(case)) for index, case in enumerate(settled.cases))
    if faulty := {index: error for index, error in faults if error}:
        raise _unusable(faulty)
    head = _head(model, question, options, request_id)
    answers = tell(gate, options, settled, request_id)
    content, json_size = write_answer(head, answers, question.outputs)
    if json_size is None:
        return Response(content, media_type=JSON)
    return Response(content, headers={JSON_SIZE: str(json_size)}, media_type=BINARY)


def _options(model: Model, default: str, question: Question) -> Options:
    asked = question.parameters
    policy = default if asked.policy is None else asked.policy
    try:
        return choose_options(model, policy, asked.alpha, members=asked.members)
    except InvalidError as error:
        faults = [
            Fault(each.pointer.replace("/query", "/body/parameters", 1), each.message, each.limit)
            for each in error.faults
        ]
        raise InvalidError(error.detail, *faults) from error


def _fault_of(case: Case | GateError) -> GateError | None:
    """Why there are no numbers to answer an image with."""
    error = error_of(case)
    if isinstance(case, Case) and error is None and not case.known.finite:
        return not_finite()
    return error


def _unusable(faulty: Mapping[int, GateError]) -> GateError:
    """One error for all images at fault: tensors have no place for an image without numbers."""
    index, first = next(iter(faulty.items()))
    return together(list(faulty.values()), f"image {index}: {first.detail}")


def _head(model: Model, question: Question, options: Options, request_id: str) -> Json:
    info = model_info(model)
    head: Json = {
        "model_name": info["name"],
        "model_version": info["version"],
        "parameters": {
            "policy": options.policy_name,
            "digest": info["digest"],
            "verified": info["verified"],
            "request_id": request_id,
        },
    }
    return head if question.id is None else head | {"id": question.id}
