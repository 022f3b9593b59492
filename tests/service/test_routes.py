"""Health, models, metrics, documentation, and what surrounds every request."""

from __future__ import annotations

import asyncio
import re
import threading

import pytest

from service.app import create_app
from service.runtime import everything
from tests.waiting import until

pytestmark = pytest.mark.anyio

PNG = {"Content-Type": "image/png"}


async def test_live_and_ready(client):
    assert (await client.get("/livez")).json() == {"live": True}
    response = await client.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"ready": True})
    verbose = (await client.get("/readyz?verbose")).json()
    assert verbose["checks"] == {"model": True, "scheduler": True, "not_draining": True}


async def test_not_ready_while_draining(start):
    async with start() as client:
        client.app.state.draining = True
        response = await client.get("/readyz?verbose")
        assert response.status_code == 503
        assert response.json()["checks"]["not_draining"] is False
        assert (await client.get("/livez")).status_code == 200


async def test_not_ready_before_and_after_its_life(settings, model, start):
    import httpx

    app = create_app(settings, model)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://gate"
    ) as client:
        assert (await client.get("/readyz")).status_code == 503
        async with app.router.lifespan_context(app):
            assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503


async def test_models(client, model):
    (entry,) = (await client.get("/models")).json()["models"]
    assert entry["digest"] == f"sha256:{model.bundle.digest}"
    assert entry["labels"] == ["ant", "bee", "cat"]
    assert entry["input"]["height"] == 8
    assert entry["verdict"] == {"verified": True, "failed": []}
    assert entry["policies"]["strict"] == {
        "alpha": 0.5,
        "min_probability": 0.99,
        "score": None,
        "alpha_confidence": None,
        "conditional_on": None,
        "members": "all",
        "settled_at": None,
    }
    assert entry["policies"]["sure"]["alpha_confidence"] == 0.9
    assert entry["policies"]["by_class"]["conditional_on"] == "class"
    assert entry["policies"]["quick"]["members"] == "confident"
    assert entry["policies"]["quick"]["settled_at"] == [0.96]
    assert entry["agreements"] == {
        "quick": {
            "rate": 0.125,
            "confidence": 0.95,
            "calibration_size": 99,
            "differing": 1,
            "bound": 0.0625,
            "mean_members": 2.5,
        }
    }
    assert entry["prediction_sets"] == model.manifest.prediction_sets.model_dump()
    assert (entry["runtime"], entry["device"]) == ("onnx", "cpu")
    assert entry["calibration_size"] == 99
    assert entry["certificate"] is None


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("DELETE", "/predict", 405), ("POST", "/models", 405)],
)
async def test_errors_of_the_router_are_problems(client, method, path, status):
    response = await client.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["error"] == problem["detail"]
    if status == 405:
        assert response.headers["allow"]


async def test_request_ids(client):
    given = await client.get("/livez", headers={"X-Request-ID": "abc-1.2:3_4"})
    assert given.headers["x-request-id"] == "abc-1.2:3_4"
    for bad in ("", "a b", "x" * 129, "é".encode(), 'a"b'):
        response = await client.get("/livez", headers={"X-Request-ID": bad})
        assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
    first, second = [(await client.get("/livez")).headers["x-request-id"] for _ in range(2)]
    assert first != second


async def test_an_unexpected_error_is_logged_and_not_told(start, monkeypatch, png, caplog):
    def explode(*args):
        raise KeyError("secret reason")

    monkeypatch.setattr("service.api.answering.results", explode)
    async with start() as client:
        response = await client.post(
            "/predict", content=png, headers={**PNG, "X-Request-ID": "mine"}
        )
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == "mine"
    assert "secret" not in response.text
    assert "secret reason" in caplog.text
    assert "mine" in caplog.text


async def test_metrics(client, png):
    await client.post("/predict", content=png, headers=PNG)
    await client.post("/predict", content=b"x", headers=PNG)
    await client.post("/predict?policy=open", content=png, headers=PNG)
    await client.get("/a/path/of/the/clients/own")
    await client.request("BREW", "/predict")
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    text = response.text
    for line in (
        'gate_http_requests_total{code="200",method="POST",route="/predict"} 2.0',
        'gate_http_requests_total{code="422",method="POST",route="/predict"} 1.0',
        'gate_http_requests_total{code="404",method="GET",route="unmatched"} 1.0',
        'gate_http_requests_total{code="405",method="other",route="/predict"} 1.0',
        "gate_inference_images_total 2.0",
        "gate_inference_executions_total 2.0",
        "gate_queue_images 0.0",
        'gate_stage_duration_seconds_count{stage="infer"} 2.0',
        "gate_predictive_entropy_nats_count 2.0",
        "gate_members_evaluated_count 2.0",
        "gate_members_evaluated_sum 20.0",
        "gate_cache_hits_total 0.0",
    ):
        assert line in text
    assert re.search(r'gate_bundle_info\{digest="[0-9a-f]{64}",members="10",name="tiny"', text)
    assert re.search(r'gate_decisions_total\{decision="\w+",policy="open",reason="\w+"\} 1.0', text)
    assert "clients" not in text


async def test_each_application_has_its_own_metrics(start, png):
    for _ in range(2):
        async with start() as client:
            await client.post("/predict", content=png, headers=PNG)
            assert "gate_inference_images_total 1.0" in (await client.get("/metrics")).text


async def test_a_full_queue_says_when_to_come_back(start, model, with_logits, png):
    entered, release = threading.Event(), threading.Event()

    def logits(batch):
        entered.set()
        assert release.wait(20)
        return everything(model.runtime, batch).logits

    options = {"max_queue_images": 3, "max_batch_images": 1, "max_images_per_request": 2}
    async with start(with_logits(logits), **options) as client:

        def ask():
            return asyncio.ensure_future(client.post("/predict", content=png, headers=PNG))

        first = ask()
        assert await asyncio.to_thread(entered.wait, 20)
        waiting = [ask(), ask()]
        await client.until_queued(2)
        assert "gate_queue_images 2.0" in (await client.get("/metrics")).text
        refused = await client.post("/predict", content=png, headers=PNG)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["type"].endswith(":unavailable")
        release.set()
        for task in (first, *waiting):
            assert (await task).status_code == 200
        assert 'gate_rejected_total{reason="queue_full"} 1.0' in (await client.get("/metrics")).text


async def test_no_answer_in_time(start, model, with_logits, png):
    release = threading.Event()

    def logits(batch):
        assert release.wait(20)
        return everything(model.runtime, batch).logits

    async with start(with_logits(logits), request_timeout_seconds=0.05) as client:
        response = await client.post("/predict", content=png, headers=PNG)
        release.set()
        assert response.status_code == 504
        assert response.json()["type"].endswith(":deadline-exceeded")


async def test_a_body_that_does_not_arrive(start):
    async def body():
        yield b"\x89PNG"
        await asyncio.sleep(20)

    async with start(request_timeout_seconds=0.05) as client:
        response = await client.post("/predict", content=body(), headers=PNG)
        assert response.status_code == 408


async def test_a_client_that_leaves_gives_its_place_back(settings, model, with_logits, png):
    """The raw ASGI conversation, as httpx cannot leave before the answer."""
    entered, release = threading.Event(), threading.Event()
    sizes = []

    def logits(batch):
        sizes.append(len(batch))
        entered.set()
        assert release.wait(20)
        return everything(model.runtime, batch).logits

    app = create_app(settings, with_logits(logits))

    async def ask(leave):
        messages = [{"type": "http.request", "body": png, "more_body": False}]
        sent = []

        async def receive():
            if messages:
                return messages.pop()
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict",
            "query_string": b"",
            "headers": [(b"content-type", b"image/png")],
        }
        await app(scope, receive, send)
        return sent

    async with app.router.lifespan_context(app):
        stay, leave = asyncio.Event(), asyncio.Event()
        first = asyncio.ensure_future(ask(stay))
        assert await asyncio.to_thread(entered.wait, 20)
        second = asyncio.ensure_future(ask(leave))
        scheduler = app.state.gate.scheduler
        await until(lambda: scheduler.queued == 1)
        leave.set()
        assert await second == []
        assert scheduler.queued == 0
        release.set()
        assert (await first)[0]["status"] == 200
        assert sizes == [1], "the step of the first"
        text = app.state.metrics.text().decode()
        assert 'gate_rejected_total{reason="cancelled"} 1.0' in text
        assert 'code="499"' in text


async def test_the_access_log_has_a_line_a_request_but_none_for_probes(start, png, caplog):
    async with start(access_log=True) as client:
        with caplog.at_level("INFO", "service.access"):
            await client.get("/livez")
            await client.post("/predict", content=png, headers={**PNG, "X-Request-ID": "mine"})
    (line,) = [record.getMessage() for record in caplog.records if record.name == "service.access"]
    assert line.startswith("mine POST /predict 200 ")


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_documentation_needs_no_network(client, path):
    page = await client.get(path)
    assert page.status_code == 200
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert any(asset.endswith(".js") for asset in assets)
    for asset in assets:
        assert asset.startswith("/"), asset
        assert (await client.get(asset)).status_code == 200
