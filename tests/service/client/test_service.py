"""The clients and the real service."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.client import AsyncGateClient, GateClient, Pipeline, StatusError


@pytest.fixture
def gate(gate_url):
    with GateClient(gate_url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def pngs(images, encode) -> list[bytes]:
    return [encode(image) for image in images]


def same(answer, other):
    """The answer, whatever the request."""
    return (answer.raw, answer.model_digest, answer.certificate) == (
        other.raw,
        other.model_digest,
        other.certificate,
    )


def test_an_answer_is_what_the_service_says(gate, gate_url, pngs, model):
    sent = httpx.post(f"{gate_url}/predict?policy=open", content=pngs[0]).json()
    answer = gate.predict(pngs[0], policy="open")
    assert answer.accepted
    assert answer.raw == sent["results"][0]
    assert answer.label == max(answer.probabilities, key=answer.probabilities.get)
    assert answer.model_digest == f"sha256:{model.bundle.digest}"
    assert answer.members_used == 10
    assert answer.prediction_set[:1] in ((), (answer.label,))
    assert answer.certificate is None


def test_it_abstains(gate, pngs):
    strict, willing = (gate.predict_many(pngs, policy=name) for name in ("strict", "open"))
    assert {answer.decision for answer in strict + willing} == {"accept", "abstain"}
    for answer in strict + willing:
        assert answer.accepted == (not answer.reasons)
        assert answer.ood.flag == ("ood" in answer.reasons)
    assert {answer.certificate["status"] for answer in strict} == {"valid"}


def test_bytes_paths_and_pixels_get_the_same_answer(gate, pngs, images, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(pngs[0])
    answers = [
        gate.gate(image) for image in (pngs[0], path, str(path), images[0], images[0, :, :, 0])
    ]
    assert all(same(answer, answers[0]) for answer in answers)
    answers = gate.gate_many([pngs[0], path, images[0]])
    assert all(same(answer, answers[0]) for answer in answers)


def test_options_reach_the_service(gate, pngs):
    answer = gate.predict(
        pngs[0], policy="open", alpha=0.03, members="all", background=True, explain=True, top_k=1
    )
    assert len(answer.probabilities) == 1
    assert len(answer.raw["members"]) == 10
    assert answer.raw["ood"]["alpha"] == 0.03
    assert gate.gate(pngs[0], policy="lax").reasons == ("rejected",)
    with pytest.raises(StatusError, match=r"status 422: .*'lax'"):
        gate.predict(pngs[0], policy="lax")


def test_an_image_that_cannot_be_read(gate, pngs):
    alone = gate.gate(pngs[0][:40])
    assert (alone.decision, alone.reasons) == ("abstain", ("input",))
    assert alone.request_id
    before, bad, after = gate.predict_many([pngs[0], b"no image", pngs[1]])
    assert bad.reasons == ("input",)
    assert bad.error == bad.raw["error"]["detail"]
    assert same(before, gate.predict(pngs[0]))
    assert same(after, gate.predict(pngs[1]))


def test_more_images_than_one_request_takes(gate, pngs):
    answers = gate.predict_many(pngs * 25, timeout=60)
    assert len(answers) == 300
    assert all(same(answer, answers[index % 12]) for index, answer in enumerate(answers))


def test_pins(gate_url, pngs, model):
    digest = f"sha256:{model.bundle.digest}"
    pinned = {"expected_digest": digest, "require_certificate": True, "timeout": 30}
    with GateClient(gate_url, policy="strict", **pinned) as client:
        assert "certificate" not in client.gate(pngs[0]).reasons
        assert client.gate(pngs[0], alpha=0.2).reasons == ("certificate",)
    with GateClient(gate_url, expected_digest=digest[:-1] + "!") as client:
        assert client.gate(pngs[0]).reasons == ("model",)


def sized(picture: np.ndarray, side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.squeeze()).resize((side, side)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.anyio
async def test_a_pipeline_keeps_the_order(gate_url, images, pngs, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(pngs[2])
    rng = np.random.default_rng(5)
    mixed = [
        sized(images[index % 12], int(side)) for index, side in enumerate(rng.integers(4, 290, 60))
    ]
    mixed += [b"no image", b"", path, images[3], *pngs]
    mixed = [mixed[index] for index in rng.permutation(len(mixed))]
    async with AsyncGateClient(gate_url, timeout=60) as client:
        expected = [await client.gate(image) for image in mixed]
    async with Pipeline(gate_url, connections=3, depth=8, timeout=60) as pipe:
        answers = await pipe.map(mixed)
        streamed = [answer async for answer in pipe.stream(mixed)]
    assert sum(answer.reasons == ("input",) for answer in answers) == 2
    for given in (answers, streamed):
        assert len(given) == len(mixed)
        assert [(each.raw, each.reasons) for each in given] == [
            (each.raw, each.reasons) for each in expected
        ]


@pytest.mark.anyio
async def test_a_pipeline_has_its_options(gate_url, pngs):
    async with Pipeline(gate_url, policy="open", top_k=1, explain=True, timeout=30) as pipe:
        answers = await pipe.map(pngs)
    assert all(answer.accepted and len(answer.raw["members"]) == 10 for answer in answers)
    assert all(len(answer.probabilities) == 1 for answer in answers)


def test_the_example_of_the_documentation(gate_url, pngs, tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "client.md").read_text(encoding="utf-8")
    (tmp_path / "seven.png").write_bytes(pngs[0])
    blocks = page.split("```python\n")[1:]
    assert blocks
    for block in blocks:
        code = block.partition("```")[0].replace("http://127.0.0.1:8000", gate_url)
        assert gate_url in code
        code = code.replace("seven.png", str(tmp_path / "seven.png"))
        exec(compile(code, "docs/client.md", "exec"), {})
