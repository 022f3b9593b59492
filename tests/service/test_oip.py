"""The Open Inference Protocol: its tensors, and its routes from a client's side."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
import threading
from dataclasses import replace
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from service.app import create_app
from service.errors import GateError, InvalidError
from service.oip import metadata, offered, read_question
from service.oip.tensors import (
    BYTES,
    DATATYPES,
    Tensor,
    from_bytes,
    from_list,
    to_bytes,
    to_list,
)
from service.runtime import everything

pytestmark = pytest.mark.anyio

INFER = "/v2/models/tiny/infer"
JSON_SIZE = "Inference-Header-Content-Length"
FLOATS = {"probabilities", "predictive_entropy", "expected_entropy", "mutual_information"}


def question(tensor: dict[str, Any], binary: bool, **rest: Any) -> dict[str, Any]:
    parameters = rest.pop("parameters", {}) | ({"binary_data_output": True} if binary else {})
    return {"inputs": [{"name": "images", **tensor}], "parameters": parameters, **rest}


def in_json(images: np.ndarray, datatype: str = "UINT8") -> tuple[dict[str, Any], bytes]:
    shape = list(images.shape)
    return {"datatype": datatype, "shape": shape, "data": images.tolist()}, b""


def in_bytes(images: np.ndarray, datatype: str = "UINT8") -> tuple[dict[str, Any], bytes]:
    raw = images.astype(DATATYPES[datatype]).tobytes()
    parameters = {"binary_data_size": len(raw)}
    return {"datatype": datatype, "shape": list(images.shape), "parameters": parameters}, raw


def files_in_json(files: list[bytes]) -> tuple[dict[str, Any], bytes]:
    data = [base64.b64encode(file).decode() for file in files]
    return {"datatype": "BYTES", "shape": [len(files)], "data": data}, b""


def files_in_bytes(files: list[bytes]) -> tuple[dict[str, Any], bytes]:
    raw = b"".join(struct.pack("<I", len(file)) + file for file in files)
    parameters = {"binary_data_size": len(raw)}
    return {"datatype": "BYTES", "shape": [len(files)], "parameters": parameters}, raw


async def post(client, document: Any, raw: bytes = b"", path: str = INFER, **headers: str):
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    if raw:
        headers = {JSON_SIZE: str(len(head))} | headers
    return await client.post(path, content=head + raw, headers=headers)


def answered(response) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The document, and each output's elements, read by this test's own decoder."""
    assert response.status_code == 200, response.text
    size = response.headers.get(JSON_SIZE)
    head = response.content if size is None else response.content[: int(size)]
    rest = b"" if size is None else response.content[int(size) :]
    document = json.loads(head)
    values = {}
    for output in document["outputs"]:
        if "data" in output:
            values[output["name"]] = output["data"]
            continue
        length = output["parameters"]["binary_data_size"]
        raw, rest = rest[:length], rest[length:]
        if output["datatype"] == BYTES:
            elements = []
            while raw:
                (count,) = struct.unpack_from("<I", raw)
                elements.append(raw[4 : 4 + count].decode())
                raw = raw[4 + count :]
            values[output["name"]] = elements
        else:
            code = {"FP32": "f", "FP64": "d", "BOOL": "?", "INT32": "i"}[output["datatype"]]
            count = length // struct.calcsize(code)
            values[output["name"]] = list(struct.unpack(f"<{count}{code}", raw))
    assert rest == b""
    media_type = "application/json" if size is None else "application/octet-stream"
    assert response.headers["content-type"] == media_type
    return document, values


def expected(results: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The outputs, from what `/predict` answers."""

    def single(number: float) -> float:
        return float(np.float32(number))

    values: dict[str, list[Any]] = {
        "probabilities": [single(p) for r in results for p in r["probabilities"].values()],
        "label": [r["label"] for r in results],
        "decision": [r["decision"] for r in results],
        "reasons": ["+".join(r["reasons"]) for r in results],
        "ood_score": [single(r["ood"]["score"]) for r in results],
        "ood_p_value": [r["ood"]["p_value"] for r in results],
        "ood_flag": [r["ood"]["flag"] for r in results],
        "prediction_set": [
            label in r["prediction_set"] for r in results for label in r["probabilities"]
        ],
        "members_used": [r["members_used"] for r in results],
    }
    for name in ("predictive_entropy", "expected_entropy", "mutual_information"):
        values[name] = [single(r["uncertainty"][name]) for r in results]
    return values


async def predicted(client, files: list[bytes], **query: Any) -> list[dict[str, Any]]:
    parts = [("files", (str(index), file)) for index, file in enumerate(files)]
    response = await client.post("/predict", files=parts, params=query)
    assert response.status_code == 200, response.text
    return response.json()["results"]


def check_problem(response, status: int, *mentioned: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["error"] == problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    for text in mentioned:
        assert text in problem["error"]
    return problem


@pytest.mark.parametrize("binary_output", [False, True])
@pytest.mark.parametrize("policy", ["default", "quick", "by_class"])
async def test_both_forms_give_what_predict_gives(client, images, encode, binary_output, policy):
    files = [encode(image) for image in images]
    results = await predicted(client, files, policy=policy)
    assert {result["decision"] for result in results} == {"accept", "abstain"}
    pixels = images[..., 0]
    for tensor, raw in (
        in_json(pixels),
        in_bytes(pixels),
        in_json(images),
        in_bytes(images),
        in_json(pixels / 255, "FP32"),
        in_bytes(images / 255, "FP32"),
        files_in_json(files),
        files_in_bytes(files),
    ):
        document = question(tensor, binary_output, parameters={"policy": policy})
        response = await post(client, document, raw)
        head, values = answered(response)
        assert values == expected(results)
        assert [output["name"] for output in head["outputs"]] == list(values)
        assert {len(output["shape"]) for output in head["outputs"]} == {1, 2}
        for output in head["outputs"]:
            assert len(values[output["name"]]) == math.prod(output["shape"])
        assert all("data" not in output for output in head["outputs"]) == binary_output
        assert head["parameters"]["policy"] == policy


async def test_the_head_of_an_answer(client, images, model):
    tensor, raw = in_bytes(images[:2])
    response = await post(client, question(tensor, False, id="mine"), raw)
    head, _ = answered(response)
    assert head["id"] == "mine"
    assert (head["model_name"], head["model_version"]) == ("tiny", "1")
    assert head["parameters"] == {
        "policy": "default",
        "digest": f"sha256:{model.bundle.digest}",
        "verified": True,
        "request_id": response.headers["x-request-id"],
    }
    described = {output["name"]: output for output in metadata(model)["outputs"]}
    for output in head["outputs"]:
        known = described.pop(output["name"])
        assert output["datatype"] == known["datatype"]
        assert output["shape"] == [2, *known["shape"][1:]]
    assert not described
    unnamed, _ = answered(await post(client, question(tensor, False), raw))
    assert "id" not in unnamed


async def test_pixels_of_other_sizes_and_colours_go_the_way_of_an_upload(client, encode):
    rng = np.random.default_rng(5)
    for shape in ((2, 30, 20, 3), (3, 5, 40), (1, 8, 8, 3), (2, 8, 8, 1), (1, 290, 300)):
        batch = rng.integers(0, 256, shape, dtype=np.uint8)
        results = await predicted(client, [encode(each) for each in batch])
        for tensor, raw in (in_json(batch), in_bytes(batch)):
            _, values = answered(await post(client, question(tensor, True), raw))
            assert values == expected(results)


async def test_outputs_that_are_asked_for(client, images):
    tensor, raw = in_bytes(images)
    outputs = [
        {"name": "ood_flag", "parameters": {"binary_data": False}},
        {"name": "label"},
        {"name": "probabilities", "parameters": {"binary_data": True}},
    ]
    for default, forms in ((False, [True, True, False]), (True, [True, False, False])):
        head, values = answered(await post(client, question(tensor, default, outputs=outputs), raw))
        assert list(values) == ["ood_flag", "label", "probabilities"]
        assert ["data" in output for output in head["outputs"]] == forms
    everyone, _ = answered(await post(client, question(tensor, False, outputs=[]), raw))
    assert len(everyone["outputs"]) == 12


async def test_options(client, images, encode):
    files = [encode(image) for image in images]
    tensor, raw = in_bytes(images)
    seen = set()
    for options in (
        {"alpha": 0.5},
        {"policy": "strict"},
        {"policy": "quick", "members": "all"},
        {"background": True},
        {"timeout": 5_000_000},
        {"timeout": 0},
    ):
        query = {name: value for name, value in options.items() if name != "timeout"}
        results = await predicted(client, files, **query)
        document = question(tensor, False, parameters=options)
        _, values = answered(await post(client, document, raw))
        assert values == expected(results)
        seen.add(str(values))
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("parameters", "pointer"),
    [
        ({"policy": "none"}, "/body/parameters/policy"),
        ({"policy": 1}, "/body/parameters/policy"),
        ({"alpha": 2}, "/body/parameters/alpha"),
        ({"alpha": "0.5"}, "/body/parameters/alpha"),
        ({"alpha": 1e-9, "policy": "sure"}, "/body/parameters/alpha"),
        ({"members": "some"}, "/body/parameters/members"),
        ({"members": "confident"}, "/body/parameters/members"),
        ({"background": "yes"}, "/body/parameters/background"),
        ({"timeout": -1}, "/body/parameters/timeout"),
        ({"alhpa": 0.5}, "/body/parameters/alhpa"),
        ({str(index): 1 for index in range(100)}, "/body/parameters/0"),
    ],
    ids=str,
)
async def test_options_that_are_not_valid(client, images, parameters, pointer):
    tensor, raw = in_bytes(images)
    response = await post(client, question(tensor, False, parameters=parameters), raw)
    assert check_problem(response, 422)["errors"][0]["pointer"] == pointer


async def test_a_bad_image_is_named(client, png):
    gif = b"GIF89a" + bytes(20)
    for files, status, index in (
        ([png, b"no image"], 422, 1),
        ([png, b"", png], 422, 1),
        ([gif], 415, 0),
        ([png, png, gif, b"no image"], 422, 2),
    ):
        for tensor, raw in (files_in_json(files), files_in_bytes(files)):
            response = await post(client, question(tensor, False), raw)
            problem = check_problem(response, status, f"image {index}: ")
            assert problem["errors"][0]["pointer"] == f"/body/inputs/0/data/{index}"


async def test_an_image_without_finite_numbers_is_named(start, model, with_logits, images):
    def logits(batch):
        bad = np.ptp(batch, axis=(1, 2, 3)) == 0
        return np.where(bad[:, None, None], np.nan, everything(model.runtime, batch).logits)

    batch = images[:3].copy()
    batch[1] = 0
    async with start(with_logits(logits)) as client:
        tensor, raw = in_bytes(batch)
        response = await post(client, question(tensor, True), raw)
        check_problem(response, 500, "image 1: ", "not finite")


VALID: dict[str, Any] = {"name": "images", "datatype": "UINT8", "shape": [1, 2, 2]}


@pytest.mark.parametrize(
    "change",
    [
        {"data": [0, 0, 0]},
        {"data": [0] * 5},
        {"data": []},
        {"data": None},
        {"data": {}},
        {"data": "abcd"},
        {"data": [0, 0, 0, 256]},
        {"data": [0, 0, 0, -1]},
        {"data": [0, 0, 0, 2**64 - 1]},
        {"data": [0, 0, 0, 2**70]},
        {"data": [0, 0, 0, 0.5]},
        {"data": [0, 0, 0, True]},
        {"data": [0, 0, 0, "0"]},
        {"data": [0, 0, 0, None]},
        {"data": [0, 0, 0, [0]]},
        {"data": [[0, 0, 0, 0]]},
        {"data": [[[0, 0], [0]]]},
        {"data": [[[[0]], [[0]], [[0]], [[0]]]]},
        {"shape": [1, 2, 3]},
        {"shape": []},
        {"shape": [4]},
        {"shape": [2, 2]},
        {"shape": [1, 2, 2, 1, 1]},
        {"shape": [1, 2, 1, 2]},
        {"shape": [0, 2, 2]},
        {"shape": [-1, 2, 2]},
        {"shape": [1, 2.0, 2]},
        {"shape": ["1", 2, 2]},
        {"shape": "1"},
        {"shape": None},
        {"datatype": "INT8"},
        {"datatype": "uint8"},
        {"datatype": None},
        {"datatype": "BYTES"},
        {"datatype": "BYTES", "shape": [1], "data": [1]},
        {"datatype": "BYTES", "shape": [1], "data": ["a b="]},
        {"datatype": "BYTES", "shape": [1], "data": ["é"]},
        {"datatype": "BYTES", "shape": [1, 1], "data": ["YQ=="]},
        {"datatype": "BYTES", "shape": [2], "data": ["YQ=="]},
        {"datatype": "FP32", "data": [0, 0, 0, 1.1]},
        {"datatype": "FP32", "data": [0, 0, 0, -0.1]},
        {"datatype": "FP32", "data": [0, 0, 0, 1e300]},
        {"datatype": "FP32", "data": [0, 0, 0, "1"]},
        {"name": 1},
        {"name": None},
        {"parameters": {"binary_data_size": 4}, "data": None},
        {"parameters": {"binary_data_size": -1}},
        {"parameters": {"binary_data_size": "4"}},
        {"parameters": {"binary_data_size": 0}},
        {"parameters": []},
    ],
    ids=str,
)
async def test_tensors_that_lie(client, change):
    document = {"inputs": [VALID | {"data": [0, 1, 2, 3]} | change]}
    response = await post(client, document)
    check_problem(response, 400 if change.get("parameters") == {"binary_data_size": 4} else 422)


async def test_the_tensor_that_the_others_were_made_from(client):
    for name in ("images", "INPUT__0"):
        document = {"inputs": [VALID | {"name": name, "data": [0, 1, 2, 3]}]}
        assert (await post(client, document)).status_code == 200


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1.0000001, -1e-7])
async def test_real_numbers_outside_0_to_1_in_bytes(client, number):
    batch = np.zeros((2, 3, 3))
    batch[1, 2, 0] = number
    tensor, raw = in_bytes(batch, "FP32")
    problem = check_problem(await post(client, question(tensor, False), raw), 422, "number 6")
    assert problem["errors"][0]["pointer"] == "/body/inputs/0/data/1"


@pytest.mark.parametrize(
    ("document", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"inputs": [NaN]}', 400),
        (b'{"id": "\\ud800"}', 400),
        (b"null", 422),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"inputs": []}', 422),
        (b'{"inputs": {}}', 422),
        (b'{"inputs": [1]}', 422),
        (b'{"inputs": [{}, {}]}', 422),
    ],
)
async def test_documents_that_ask_nothing(client, document, status):
    check_problem(await post(client, document), status)


@pytest.mark.parametrize(
    ("outputs", "pointer"),
    [
        ([{"name": "probs"}], "/body/outputs/0/name"),
        ([{"name": "label"}, {"name": "label"}], "/body/outputs/1/name"),
        ([{"name": "label", "parameters": {"classification": 3}}], None),
        ([{"name": "label", "parameters": {"binary_data": 1}}], None),
        ([{}], "/body/outputs/0/name"),
        ("label", "/body/outputs"),
        ([{"name": "label"}] * 100, "/body/outputs"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_outputs_that_there_are_not(client, images, outputs, pointer):
    tensor, raw = in_bytes(images)
    problem = check_problem(await post(client, question(tensor, False, outputs=outputs), raw), 422)
    where = problem["errors"][0]["pointer"]
    assert where == pointer or (pointer is None and where.startswith("/body/outputs/0/parameters/"))


async def test_bytes_that_do_not_fit(client, images, png):
    tensor, raw = in_bytes(images)
    head = json.dumps(question(tensor, False)).encode()
    for size in ("x", "-1", "", "1e2", "²", "9" * 5000, str(len(head + raw) + 1), "0"):
        response = await client.post(INFER, content=head + raw, headers={JSON_SIZE: size.encode()})
        check_problem(response, 400)
    for body in (raw[:-1], raw + b"x", raw * 2, b""):
        check_problem(await post(client, head, body, **{JSON_SIZE: str(len(head))}), 400)
    check_problem(await client.post(INFER, content=head + raw), 400)
    tensor["shape"][0] -= 1
    check_problem(await post(client, question(tensor, False), raw), 422, "takes", "bytes")
    tensor, raw = files_in_bytes([png, png])
    whole = struct.pack("<I", len(png)) + png
    for lengths in (
        raw[:-1] + b"",
        whole + whole[:2] + bytes(len(whole) - 2)[:1],
        whole,
        whole * 3,
        b"\xff\xff\xff\xff" + raw[4:],
        struct.pack("<I", len(png) + 1) + raw[4:],
        struct.pack("<I", 0) + raw[4:],
    ):
        lying = tensor | {"parameters": {"binary_data_size": len(lengths)}}
        check_problem(await post(client, question(lying, False), lengths), 422)


async def test_limits(client, images):
    many = np.zeros((17, 8, 8), dtype=np.uint8)
    tensor, raw = in_bytes(many)
    problem = check_problem(await post(client, question(tensor, False), raw), 413, "16 images")
    assert problem["errors"][0]["limit"] == 16
    for shape in ([1, 301, 300], [1, 2**40, 2**40], [2**63, 2**63, 2**63]):
        huge = VALID | {"shape": shape, "data": [0]}
        check_problem(await post(client, question(huge, False)), 413)
        told = VALID | {"shape": shape, "parameters": {"binary_data_size": 4}}
        check_problem(await post(client, question(told, False), bytes(4)), 413)
    check_problem(await post(client, b" " * 1_000_001), 413, "1000000 bytes")


async def test_a_file_of_too_many_pixels(client, encode):
    large = encode(Image.new("1", (301, 300)))
    tensor, raw = files_in_bytes([large])
    problem = check_problem(await post(client, question(tensor, False), raw), 413, "image 0: ")
    assert problem["errors"][0]["limit"] == 90_000


async def test_a_compressed_body(client, images):
    tensor, raw = in_bytes(images)
    response = await post(client, question(tensor, False), raw, **{"Content-Encoding": "gzip"})
    check_problem(response, 415)


@hypothesis.settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=st.data())
def test_noise_is_never_an_error_of_ours(model, settings, data):
    """Bodies that are cut, overwritten, or lie about their parts: answered or refused."""
    tensor, raw = in_bytes(np.zeros((2, 8, 8), dtype=np.uint8))
    head = json.dumps(question(tensor, True)).encode()
    body = bytearray(head + raw)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        hypothesis.assume(body)
    size = data.draw(st.none() | st.just(str(len(head))) | st.integers(0, 2000).map(str))
    try:
        status = 200 if read_question(bytes(body), size, offered(model), settings).images else 0
    except GateError as error:
        status = error.status
    hypothesis.event(str(status))
    assert status in (200, 400, 413, 422)


SHAPES = npst.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    array=st.sampled_from(sorted(DATATYPES)).flatmap(
        lambda name: st.tuples(st.just(name), npst.arrays(DATATYPES[name], SHAPES))
    )
)
def test_numbers_survive_both_forms(array):
    datatype, values = array
    tensor = Tensor("x", datatype, values.shape, values.ravel())
    raw = to_bytes(tensor)
    assert len(raw) == values.size * values.itemsize
    read = from_bytes(datatype, values.shape, raw)
    assert read.tobytes() == values.tobytes()
    if np.isfinite(values.astype(float)).all():
        written = json.loads(json.dumps(to_list(tensor)))
        flat = from_list(datatype, values.shape, written)
        assert flat.dtype == DATATYPES[datatype]
        assert flat.tobytes() == values.tobytes()
        if values.size:
            nested = from_list(datatype, values.shape, values.tolist())
            assert nested.tobytes() == values.tobytes()
    with pytest.raises(InvalidError):
        from_bytes(datatype, values.shape, raw + b"\0")


@hypothesis.given(elements=st.lists(st.binary()))
def test_bytes_survive(elements):
    tensor = Tensor("x", BYTES, (len(elements),), elements)
    raw = to_bytes(tensor)
    assert raw == b"".join(len(each).to_bytes(4, "little") + each for each in elements)
    assert from_bytes(BYTES, tensor.shape, raw) == elements
    for shape in ((len(elements) + 1,), (len(elements) - 1,)):
        with pytest.raises(InvalidError):
            from_bytes(BYTES, shape, raw)
    with pytest.raises(InvalidError):
        from_bytes(BYTES, tensor.shape, raw + b"\0")
    if raw:
        with pytest.raises(InvalidError):
            from_bytes(BYTES, tensor.shape, raw[:-1])


@hypothesis.given(texts=st.lists(st.text(st.characters(codec="utf-8"))))
def test_text_survives_json(texts):
    elements = [text.encode() for text in texts]
    tensor = Tensor("x", BYTES, (len(texts),), elements)
    assert from_list(BYTES, tensor.shape, json.loads(json.dumps(to_list(tensor)))) == elements


async def test_the_server_and_the_model(client, model):
    server = (await client.get("/v2")).json()
    assert server["name"] == "langevin-gate"
    assert server["extensions"] == ["binary_tensor_data"]
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
        content = (await client.get(path)).json()
        assert content == metadata(model)
        assert json.loads(content["properties"]["labels"]) == ["ant", "bee", "cat"]
        assert content["properties"]["digest"] == f"sha256:{model.bundle.digest}"
        assert content["inputs"] == [
            {"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 1]}
        ]
        assert len(content["outputs"]) == 12


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/tiny/versions/2"])
async def test_models_that_are_not_served(client, images, path):
    asked = path.rpartition("/")[2]
    check_problem(await client.get(path), 404, repr(asked))
    check_problem(await client.get(f"{path}/ready"), 404)
    tensor, raw = in_bytes(images)
    check_problem(await post(client, question(tensor, True), raw, f"{path}/infer"), 404)


async def test_a_version_is_asked(client, images):
    tensor, raw = in_bytes(images)
    path = "/v2/models/tiny/versions/1/infer"
    versioned = await post(client, question(tensor, False), raw, path)
    unversioned = await post(client, question(tensor, False), raw)
    assert answered(versioned)[1] == answered(unversioned)[1]


async def test_a_bundle_without_prediction_sets_offers_none(start, model, images):
    manifest = model.manifest.model_copy(update={"prediction_sets": None})
    bare = replace(model, bundle=replace(model.bundle, manifest=manifest))
    async with start(bare) as client:
        tensor, raw = in_bytes(images)
        _, values = answered(await post(client, question(tensor, True), raw))
        assert set(values) == set(offered(model)) - {"prediction_set"}
        outputs = [{"name": "prediction_set"}]
        response = await post(client, question(tensor, True, outputs=outputs), raw)
        check_problem(response, 422, "prediction_set")


async def test_health(client):
    assert (await client.get("/v2/health/live")).json() == {"live": True}
    assert (await client.get("/v2/health/ready")).json() == {"ready": True}
    assert (await client.get("/v2/models/tiny/ready")).json() == {"name": "tiny", "ready": True}
    client.app.state.draining = True
    for path, content in (
        ("/v2/health/ready", {"ready": False}),
        ("/v2/models/tiny/ready", {"name": "tiny", "ready": False}),
        ("/v2/models/tiny/versions/1/ready", {"name": "tiny", "ready": False}),
    ):
        response = await client.get(path)
        assert (response.status_code, response.json()) == (503, content)
    assert (await client.get("/v2/health/live")).status_code == 200


async def test_answers_are_counted_and_kept(start, images, png):
    async with start(cache_images=10) as client:
        for tensor, raw in (in_bytes(images[:2]), in_json(images[:2]), files_in_bytes([png])):
            assert (await post(client, question(tensor, True), raw)).status_code == 200
        await client.post("/predict", content=png, headers={"Content-Type": "image/png"})
        other, raw = in_bytes(images[:2].reshape(2, 4, 16))
        assert (await post(client, question(other, True), raw)).status_code == 200
        text = (await client.get("/metrics")).text
    for line in (
        'gate_http_requests_total{code="200",method="POST",route="/v2/models/{name}/infer"} 4.0',
        "gate_cache_hits_total 3.0",
        "gate_inference_images_total 5.0",
        "gate_predictive_entropy_nats_count 8.0",
    ):
        assert line in text


async def test_no_answer_in_the_time_that_the_client_has(start, model, with_logits, images):
    release = threading.Event()

    def logits(batch):
        assert release.wait(20)
        return everything(model.runtime, batch).logits

    async with start(with_logits(logits)) as client:
        tensor, raw = in_bytes(images)
        document = question(tensor, True, parameters={"timeout": 50_000})
        response = await post(client, document, raw)
        release.set()
        check_problem(response, 504)
        text = (await client.get("/metrics")).text
        assert 'gate_rejected_total{reason="deadline"} 1.0' in text


async def test_a_client_that_leaves_gives_its_place_back(settings, model, with_logits, images):
    """The raw ASGI conversation, as httpx cannot leave before the answer."""
    release = threading.Event()

    def logits(batch):
        assert release.wait(20)
        return everything(model.runtime, batch).logits

    tensor, raw = in_bytes(images)
    head = json.dumps(question(tensor, True)).encode()
    messages = [{"type": "http.request", "body": head + raw}, {"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0)

    async def send(message):
        pytest.fail(f"there is no one to tell {message}")

    app = create_app(settings, with_logits(logits))
    scope = {
        "type": "http",
        "method": "POST",
        "path": INFER,
        "query_string": b"",
        "headers": [(JSON_SIZE.lower().encode(), str(len(head)).encode())],
    }
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
        assert app.state.gate.scheduler.queued == 0
        assert app.state.buffers.used == 0
        release.set()
        text = app.state.metrics.text().decode()
        assert 'gate_rejected_total{reason="cancelled"} 1.0' in text
        assert 'code="499"' in text


async def test_a_body_that_does_not_arrive(start):
    async def body():
        yield b"{"
        await asyncio.sleep(20)

    async with start(request_timeout_seconds=0.05) as client:
        check_problem(await client.post(INFER, content=body()), 408)


async def test_a_large_body_is_read_and_decoded_in_threads(client):
    batch = np.random.default_rng(1).integers(0, 256, (2, 200, 200), dtype=np.uint8)
    answers = [
        answered(await post(client, question(tensor, True), raw))[1]
        for tensor, raw in (in_json(batch), in_bytes(batch))
    ]
    assert answers[0] == answers[1]
