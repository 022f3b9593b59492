"""`POST /predict` from a client's side."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.preprocessing import prepare
from models.uncertainty import summarise
from service.offline import answer_files
from service.runtime import everything

pytestmark = pytest.mark.anyio

PNG = {"Content-Type": "image/png"}
RESULT_FIELDS = {
    "decision",
    "reasons",
    "label",
    "probabilities",
    "uncertainty",
    "ood",
    "prediction_set",
    "members_used",
    "input",
    "error",
}


ALL_MEMBERS = {"mode": "all", "available": 10, "differing_rate": 0.0, "confidence": 1.0}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def check_invariants(result: dict[str, Any]) -> None:
    probabilities = result["probabilities"]
    assert math.isclose(sum(probabilities.values()), 1, abs_tol=1e-9)
    assert max(probabilities.values()) >= 1 / len(probabilities)
    assert result["label"] == max(probabilities, key=probabilities.__getitem__)
    uncertainty = result["uncertainty"]
    assert math.isclose(
        uncertainty["predictive_entropy"],
        uncertainty["expected_entropy"] + uncertainty["mutual_information"],
        abs_tol=1e-12,
    )
    assert result["ood"]["flag"] == (result["ood"]["p_value"] <= result["ood"]["level"])
    assert set(result["prediction_set"]) <= set(probabilities)
    assert (result["decision"] == "abstain") == bool(result["reasons"])


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: answer[key] for key in ("results", "model", "policy", "members", "certificate")}


def check_problem(response: Any, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"urn:problem-type:langevin-gate:{kind}"
    assert problem["status"] == status
    assert problem["error"] == problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return problem


async def test_one_image_as_the_body(client, png, images, model):
    response = await client.post("/predict", content=png, headers=PNG)
    assert response.status_code == 200
    answer = response.json()
    (result,) = answer["results"]
    assert set(result) == RESULT_FIELDS
    check_invariants(result)
    expected = summarise(
        everything(model.runtime, prepare(images[:1], model.manifest.input)[0]).logits
    )
    assert list(result["probabilities"].values()) == expected.probabilities[0].tolist()
    assert result["uncertainty"]["predictive_entropy"] == expected.predictive_entropy[0]
    assert result["uncertainty"]["unit"] == "nat"
    assert result["uncertainty"]["maximum"] == math.log(3)
    share = result["uncertainty"]["share"]["predictive_entropy"]
    assert share == pytest.approx(expected.predictive_entropy[0] / math.log(3))
    told = {"score": result["ood"]["score"], "p_value": result["ood"]["p_value"]}
    assert result["ood"]["detector"] == "predictive_entropy"
    assert result["ood"]["detectors"] == {"predictive_entropy": told}
    assert result["members_used"] == 10
    assert result["ood"]["members_used"] == 2
    assert result["input"] == {"width": 8, "height": 8, "mode": "L", "applied": ["none"]}
    assert result["error"] is None
    assert answer["model"] == {
        "name": "tiny",
        "version": "1",
        "digest": f"sha256:{model.bundle.digest}",
        "members": 10,
        "verified": True,
    }
    assert answer["policy"] == "default"
    assert answer["members"] == ALL_MEMBERS
    assert answer["certificate"] is None
    assert set(answer["timing_ms"]) == {"decode", "queue", "infer", "total"}
    assert answer["request_id"] == response.headers["x-request-id"]


async def test_every_way_of_sending_gives_the_same_answer(client, png, images, encode):
    answers = [
        await client.post("/predict", content=png, headers=PNG),
        await client.post("/predict", content=png, headers={"Content-Type": "image/jpeg"}),
        await client.post("/predict", content=png, headers={"Content-Type": "IMAGE/PNG; q=1"}),
        await client.post(
            "/predict", content=png, headers={"Content-Type": "application/octet-stream"}
        ),
        await client.post("/predict", content=png),
        await client.post("/predict", files={"files": ("a", png)}),
        await client.post("/predict", json={"images": [{"base64": b64(png)}]}),
        await client.post("/predict", json={"images": [{"pixels": images[0, :, :, 0].tolist()}]}),
        await client.post(
            "/predict",
            json={"images": [{"pixels": (images[0, :, :, 0] / 255).tolist(), "maximum": 1}]},
        ),
        await client.post(
            "/predict", content=encode(images[0], "WEBP", lossless=True), headers=PNG
        ),
        await client.post("/predict", content=encode(images[0], "BMP"), headers=PNG),
    ]
    expected = without_times(answers[0].json())
    for answer in answers:
        assert answer.status_code == 200, answer.text
        result = without_times(answer.json())
        result["results"][0]["input"]["mode"] = "L"
        result["results"][0]["input"]["applied"] = ["none"]
        if answer is not answers[9]:
            assert result == expected
        else:
            assert result["results"][0]["label"] == expected["results"][0]["label"]


async def test_permuting_images_permutes_answers(client, images, encode):
    files = [("files", (f"{index}", encode(image))) for index, image in enumerate(images)]
    order = np.random.default_rng(0).permutation(len(files))
    straight = (await client.post("/predict", files=files)).json()["results"]
    shuffled = (await client.post("/predict", files=[files[i] for i in order])).json()["results"]
    assert len(straight) == len(images)
    for position, index in enumerate(order):
        assert shuffled[position] == straight[index]
    for result in straight:
        check_invariants(result)


async def test_images_of_many_sizes_and_modes_in_one_request(client):
    sizes = [(8, 8), (8, 8), (28, 28), (300, 200), (3, 90), (8, 8)]
    pictures = [Image.new("RGB" if i % 2 else "L", size) for i, size in enumerate(sizes)]
    parts = []
    for picture in pictures:
        pixels = np.asarray(picture).tolist()
        parts.append({"pixels": pixels})
    results = (await client.post("/predict", json={"images": parts})).json()["results"]
    shown = [(result["input"]["width"], result["input"]["height"]) for result in results]
    assert shown == sizes
    assert results[0]["input"]["applied"] == ["none"]
    assert results[3]["input"]["applied"] == ["reduce", "grey", "resize", "pad"]


async def test_a_bad_image_does_not_disturb_the_others(client, png):
    files = [("files", ("a", png)), ("files", ("b", b"no image")), ("files", ("c", png))]
    response = await client.post("/predict", files=files)
    assert response.status_code == 200
    first, bad, last = response.json()["results"]
    assert first == last
    assert set(bad) == RESULT_FIELDS
    assert bad["decision"] == "abstain"
    assert bad["reasons"] == ["input"]
    assert bad["label"] is bad["probabilities"] is bad["uncertainty"] is bad["ood"] is None
    assert bad["prediction_set"] is None
    assert bad["members_used"] == 0
    assert bad["error"]["status"] == 422
    assert bad["error"]["errors"][0]["pointer"] == "/body/files/1"
    assert bad["error"]["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("content", "status", "kind"),
    [
        (b"no image", 422, "invalid-input"),
        (b"", 422, "invalid-input"),
        (b"GIF89a" + bytes(20), 415, "unsupported-media-type"),
        (b"\x89PNG\r\n\x1a\n" + bytes(9), 422, "invalid-input"),
    ],
)
async def test_only_a_bad_image(client, content, status, kind):
    raw = await client.post("/predict", content=content, headers=PNG)
    check_problem(raw, status, kind)
    form = await client.post("/predict", files={"files": ("a", content)})
    problem = check_problem(form, status, kind)
    assert problem["errors"][0]["pointer"] == "/body/files/0"
    coded = await client.post("/predict", json={"images": [{"base64": b64(content)}]})
    problem = check_problem(coded, status, kind)
    assert problem["errors"][0]["pointer"] == "/body/images/0"


async def test_only_bad_images(client, encode):
    gif = b"GIF89a" + bytes(20)
    same = await client.post("/predict", files=[("files", ("a", gif)), ("files", ("b", gif))])
    problem = check_problem(same, 415, "unsupported-media-type")
    assert [fault["pointer"] for fault in problem["errors"]] == ["/body/files/0", "/body/files/1"]
    mixed = await client.post("/predict", files=[("files", ("a", gif)), ("files", ("b", b"x"))])
    check_problem(mixed, 422, "invalid-input")


async def test_too_many_pixels(client, encode):
    # 90,000 pixels are allowed; the second is judged by its header, for there is nothing to decode.
    fits = await client.post("/predict", content=encode(Image.new("1", (300, 300))))
    assert fits.status_code == 200
    header = encode(Image.new("1", (30_000, 30_000)))[:60]
    response = await client.post("/predict", content=header, headers=PNG)
    problem = check_problem(response, 413, "too-large")
    assert problem["errors"] == [
        {"pointer": "/body", "message": problem["detail"], "limit": 90_000}
    ]


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "x"])
async def test_media_types_that_are_not_accepted(client, png, media_type):
    response = await client.post("/predict", content=png, headers={"Content-Type": media_type})
    check_problem(response, 415, "unsupported-media-type")


async def test_no_content_type_and_no_image(client):
    check_problem(await client.post("/predict", content=b"what"), 415, "unsupported-media-type")


async def test_compressed_body(client, png):
    response = await client.post(
        "/predict", content=png, headers={**PNG, "Content-Encoding": "gzip"}
    )
    check_problem(response, 415, "unsupported-media-type")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b"\xff\xfe\x00", b'{"images": [1' + b"1" * 5000 + b"]}"],
)
async def test_malformed_json(client, body):
    response = await client.post(
        "/predict", content=body, headers={"Content-Type": "application/json"}
    )
    check_problem(response, 400, "malformed-body")


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ([], "/body"),
        ("text", "/body"),
        (None, "/body"),
        ({}, "/body/images"),
        ({"images": []}, "/body/images"),
        ({"images": {}}, "/body/images"),
        ({"images": [{"base64": ""}], "image": 1}, "/body/image"),
        ({"images": [None]}, "/body/images/0"),
        ({"images": [{}]}, "/body/images/0"),
        ({"images": [{"base64": "", "pixels": []}]}, "/body/images/0"),
        ({"images": [{"url": "http://example.com/a.png"}]}, "/body/images/0/url"),
        ({"images": [{"base64": 1}]}, "/body/images/0/base64"),
        ({"images": [{"base64": "a b="}]}, "/body/images/0/base64"),
        ({"images": [{"base64": "YQ"}]}, "/body/images/0/base64"),
        ({"images": [{"base64": "YQ==YQ=="}]}, "/body/images/0/base64"),
        ({"images": [{"base64": "é"}]}, "/body/images/0/base64"),
        ({"images": [{"base64": "data:image/png;base64,YQ=="}]}, "/body/images/0/base64"),
        ({"images": [{"base64": "YQ==", "maximum": 1}]}, "/body/images/0/maximum"),
        ({"images": [{"pixels": [[0, 256]]}]}, "/body/images/0/pixels/0/1"),
        ({"images": [{"pixels": [[0], [0, 1]]}]}, "/body/images/0/pixels/1"),
    ],
)
async def test_json_that_is_no_list_of_images(client, document, pointer):
    response = await client.post("/predict", json=document)
    problem = check_problem(response, 422, "invalid-input")
    assert problem["errors"][0]["pointer"] == pointer


async def test_text_that_is_no_unicode_is_told_all_the_same(client):
    """Half of a surrogate pair, which JSON can name and UTF-8 cannot."""
    response = await client.post(
        "/predict",
        content=b'{"images": [{"base64": ""}], "a\\ud800b": 1}',
        headers={"Content-Type": "application/json"},
    )
    problem = check_problem(response, 422, "invalid-input")
    assert problem["errors"][0]["pointer"] == "/body/a?b"


@pytest.mark.parametrize(
    "query",
    [{"explain": True}, {"policy": "by_class"}, {"policy": "sure"}, {"fdr": 0.5}],
    ids=str,
)
async def test_answers_are_written_by_the_fast_encoder(client, png, query, monkeypatch):
    monkeypatch.setattr("service.results.json", None)
    response = await client.post("/predict", content=png, headers=PNG, params=query)
    assert response.status_code == 200
    assert response.json()["results"][0]["error"] is None


async def test_nan_in_json_pixels_names_its_place(client):
    body = b'{"images": [{"pixels": [[0, 0], [0, NaN]], "maximum": 1}]}'
    response = await client.post(
        "/predict", content=body, headers={"Content-Type": "application/json"}
    )
    problem = check_problem(response, 422, "invalid-input")
    assert problem["errors"][0]["pointer"] == "/body/images/0/pixels/1/1"


def multipart(*parts: bytes, end: bytes = b"--x--\r\n") -> dict[str, Any]:
    body = b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + end
    return {"content": body, "headers": {"Content-Type": "multipart/form-data; boundary=x"}}


def part(content: bytes, name: str = "files") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n'
    return head.encode() + content


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400),
        (multipart(end=b"nonsense"), 400),
        (multipart(b"Content-Disposition: form-data\r\n\r\nx"), 400),
        (multipart(part(b"x"), end=b""), 400),
        (multipart(), 422),
        (multipart(part(b"x", name="file")), 422),
        (multipart(b'Content-Disposition: form-data; name="files"\r\n\r\ntext'), 422),
    ],
)
async def test_bad_forms(client, request_, status):
    response = await client.post("/predict", **request_)
    check_problem(response, status, "malformed-body" if status == 400 else "invalid-input")


async def test_a_form_that_is_cut_short_is_not_half_answered(client, png):
    whole = multipart(part(png), part(png))
    assert len((await client.post("/predict", **whole)).json()["results"]) == 2
    whole["content"] = whole["content"][:-20]
    check_problem(await client.post("/predict", **whole), 400, "malformed-body")


async def test_too_many_images(client, png):
    files = [("files", ("a", png))] * 17
    check_problem(await client.post("/predict", files=files), 413, "too-large")
    many = {"images": [{"base64": b64(png)}] * 17}
    problem = check_problem(await client.post("/predict", json=many), 413, "too-large")
    assert problem["errors"][0]["limit"] == 16


async def chunks(total: int):
    for _ in range(total // 1000):
        yield bytes(1000)


@pytest.mark.parametrize("headers", [PNG, {"Content-Type": "application/json"}, {}])
async def test_the_body_is_counted_as_it_arrives(client, headers):
    declared = await client.post("/predict", content=bytes(1_000_001), headers=headers)
    check_problem(declared, 413, "too-large")
    chunked = await client.post("/predict", content=chunks(1_001_000), headers=headers)
    problem = check_problem(chunked, 413, "too-large")
    assert problem["errors"][0]["limit"] == 1_000_000


async def test_a_chunked_form_is_counted_as_it_arrives(client):
    async def body():
        yield b"--x\r\n" + part(b"")
        async for chunk in chunks(1_001_000):
            yield chunk

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = await client.post("/predict", content=body(), headers=headers)
    check_problem(response, 413, "too-large")


async def test_the_bytes_of_all_bodies_are_bounded(start, png):
    async with start(max_buffered_bytes=10) as client:
        response = await client.post("/predict", content=png, headers=PNG)
        problem = check_problem(response, 503, "unavailable")
        assert response.headers["retry-after"] == str(problem["retry_after"])
        again = await client.post("/predict", content=b"x" * 9, headers=PNG)
        assert again.status_code == 422, "the bytes of the first were given back"


async def test_policies_and_alpha(client, png):
    async def ask(**query):
        response = await client.post("/predict", content=png, headers=PNG, params=query)
        assert response.status_code == 200, response.text
        return response.json()

    default = await ask()
    strict = await ask(policy="strict")
    assert strict["policy"] == "strict"
    assert strict["results"][0]["ood"]["alpha"] == strict["results"][0]["ood"]["level"] == 0.5
    assert strict["results"][0]["ood"]["fdr"] is None
    assert strict["results"][0]["probabilities"] == default["results"][0]["probabilities"]
    lax = (await ask(policy="open", alpha=1e-9))["results"][0]
    assert (lax["decision"], lax["reasons"]) == ("accept", [])
    alarmed = (await ask(policy="open", alpha=0.999999))["results"][0]
    assert (alarmed["decision"], alarmed["reasons"]) == ("abstain", ["ood"])
    assert alarmed["ood"]["alpha"] == alarmed["ood"]["level"] == 0.999999


CERTIFICATE = {
    "selective_risk": 0.3,
    "confidence": 0.9,
    "coverage": 33 / 99,
    "calibration_size": 99,
    "status": "valid",
    "risk_bound": 0.25,
    "coverage_bound": 0.125,
    "alpha": 0.5,
    "min_probability": 0.99,
    "assumption": "Images are drawn independently from the same source as the calibration images.",
}
OF_QUICK = CERTIFICATE | {
    "selective_risk": 0.2,
    "coverage": 66 / 99,
    "risk_bound": 0.125,
    "coverage_bound": 0.5,
    "alpha": 0.3,
    "min_probability": 0.6,
}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, None),
        ({"policy": "open"}, None),
        ({"policy": "strict"}, CERTIFICATE),
        ({"policy": "strict", "alpha": 0.5}, CERTIFICATE),
        ({"policy": "strict", "top_k": 1, "explain": True}, CERTIFICATE),
        ({"policy": "strict", "alpha": 0.49}, None),
        ({"policy": "strict", "fdr": 0.5}, None),
        ({"policy": "open", "alpha": 0.5}, None),
        ({"policy": "strict", "members": "exact"}, CERTIFICATE),
        ({"policy": "quick"}, OF_QUICK),
        ({"policy": "quick", "members": "all"}, OF_QUICK),
        ({"policy": "quick", "members": "exact"}, OF_QUICK),
        ({"policy": "quick", "members": "exact", "alpha": 0.2}, None),
    ],
    ids=str,
)
async def test_certificate_is_that_of_the_levels_in_use(client, png, query, expected):
    response = await client.post("/predict", content=png, headers=PNG, params=query)
    assert response.json()["certificate"] == expected


async def test_certificates_by_policy(start, client):
    (entry,) = (await client.get("/models")).json()["models"]
    assert entry["certificates"] == {"strict": CERTIFICATE, "quick": OF_QUICK}
    assert entry["certificate"] is None
    async with start(policy="strict") as client:
        (entry,) = (await client.get("/models")).json()["models"]
        assert entry["certificate"] == CERTIFICATE


async def test_offline_answer_has_the_certificate(model, settings, png, tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes(png)
    assert answer_files(model, settings, [file])["certificate"] is None
    strict = settings.model_copy(update={"policy": "strict"})
    assert answer_files(model, strict, [file])["certificate"] == CERTIFICATE


async def test_the_settings_name_the_default_policy(start, png):
    async with start(policy="strict") as client:
        answer = (await client.post("/predict", content=png, headers=PNG)).json()
        assert answer["policy"] == "strict"


async def test_explain_and_top_k(client, png):
    query = {"explain": "true", "top_k": 2}
    plain = (await client.post("/predict", content=png, headers=PNG)).json()["results"][0]
    answer = (await client.post("/predict", content=png, headers=PNG, params=query)).json()
    (result,) = answer["results"]
    ranked = sorted(plain["probabilities"].items(), key=lambda item: -item[1])
    assert list(result["probabilities"].items()) == ranked[:2]
    assert len(result["members"]) == 10
    for label, probability in result["probabilities"].items():
        mean = np.mean([member[label] for member in result["members"]])
        assert mean == pytest.approx(probability)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"alpha": "0"}, "alpha"),
        ({"alpha": "1"}, "alpha"),
        ({"alpha": "nan"}, "alpha"),
        ({"alpha": "x"}, "alpha"),
        ({"fdr": "0"}, "fdr"),
        ({"fdr": "1"}, "fdr"),
        ({"fdr": "-0.1"}, "fdr"),
        ({"fdr": "nan"}, "fdr"),
        ({"fdr": "x"}, "fdr"),
        ({"fdr": "0.1", "alpha": "0.1"}, "fdr"),
        ({"policy": "none"}, "policy"),
        ({"explain": "perhaps"}, "explain"),
        ({"background": "perhaps"}, "background"),
        ({"members": "some"}, "members"),
        ({"members": "confident"}, "members"),
        ({"members": "confident", "policy": "strict"}, "members"),
        ({"top_k": "0"}, "top_k"),
        ({"top_k": "4"}, "top_k"),
        ({"alhpa": "0.1"}, "alhpa"),
    ],
)
async def test_bad_options(client, png, query, field):
    response = await client.post("/predict", content=png, headers=PNG, params=query)
    problem = check_problem(response, 422, "invalid-input")
    assert problem["errors"][0]["pointer"] == f"/query/{field}"


async def test_logits_that_are_not_finite_abstain(start, model, with_logits, images, encode):
    def logits(batch):
        values = everything(model.runtime, batch).logits
        values[batch.sum(axis=(1, 2, 3)) > 0, 1, 2] = np.nan
        return values

    dark = Image.new("L", (8, 8))
    async with start(with_logits(logits)) as client:
        files = [("files", ("a", encode(images[0]))), ("files", ("b", encode(dark)))]
        response = await client.post("/predict", files=files, params={"explain": True})
    assert response.status_code == 200
    json.loads(response.text, parse_constant=pytest.fail)
    lost, kept = response.json()["results"]
    assert lost["decision"] == "abstain"
    assert lost["reasons"] == ["uncertain"]
    assert lost["probabilities"] is lost["label"] is lost["uncertainty"] is None
    assert lost["prediction_set"] is None
    assert lost["ood"]["flag"] is True
    assert lost["ood"]["p_value"] == 1 / 100
    assert lost["error"]["status"] == 500
    assert kept["error"] is None
    check_invariants(kept)


async def test_a_model_that_raises_is_our_fault(start, with_logits, png, caplog):
    def fail(batch):
        raise RuntimeError("secret reason")

    async with start(with_logits(fail)) as client:
        response = await client.post("/predict", content=png, headers=PNG)
        check_problem(response, 500, "inference-failed")
        assert "secret" not in response.text
    assert "secret reason" in caplog.text


async def test_many_files_are_decoded_off_the_loop(client, encode):
    noise = np.random.default_rng(5).integers(0, 256, (200, 200), dtype=np.uint8)
    response = await client.post("/predict", content=encode(noise), headers=PNG)
    assert response.status_code == 200
    assert response.json()["results"][0]["input"]["applied"][0] == "reduce"


@pytest.mark.parametrize(
    ("policy", "score"), [("shapely", "shape"), ("featured", "feature_subspaces")]
)
async def test_a_policy_may_name_the_score_that_raises_its_flag(
    client, images, encode, policy, score
):
    files = [("files", (f"{index}", encode(image))) for index, image in enumerate(images)]
    query = "policy=open&alpha=0.3&explain=true"
    plain = (await client.post(f"/predict?{query}", files=files)).json()["results"]
    named = (await client.post(f"/predict?policy={policy}", files=files)).json()["results"]
    for usual, other in zip(plain, named, strict=True):
        assert usual["ood"]["detector"] == "predictive_entropy"
        assert other["ood"]["detector"] == score
        assert other["ood"]["detectors"] == {score: usual["ood"]["detectors"][score]}
        expected = other["ood"]["detectors"][score]
        assert {key: other["ood"][key] for key in expected} == expected
        assert other["ood"]["flag"] == (expected["p_value"] <= 0.3) == (other["reasons"] == ["ood"])
    flags = [[result["ood"]["flag"] for result in results] for results in (plain, named)]
    assert flags[0] != flags[1]


async def test_without_the_server_in_front_the_application_answers_alike(client, images, encode):
    """`create_app` alone, as one who mounts it in another application has it."""
    headers = {"Content-Type": "image/png", "X-Request-ID": "same"}
    asked = {"content": encode(images[0]), "headers": headers}
    bare = httpx.AsyncClient(transport=httpx.ASGITransport(client.app), base_url="http://gate")
    async with bare:
        for query in ("", "?top_k=2", "?alpha=7", "?policy=none"):
            there = await client.post(f"/predict{query}", **asked)
            here = await bare.post(f"/predict{query}", **asked)
            assert here.status_code == there.status_code
            assert dict(here.headers) | {"content-length": ""} == dict(there.headers) | {
                "content-length": ""
            }
            told = [each.json() | {"timing_ms": None} for each in (here, there)]
            assert told[0] == told[1]
