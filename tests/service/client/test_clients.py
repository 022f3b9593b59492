"""Both clients, without a network."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time

import httpx
import pytest

from service.client import (
    AsyncGateClient,
    CertificateError,
    ConnectError,
    DeadlineError,
    GateClient,
    MalformedAnswerError,
    ModelMismatchError,
    StatusError,
)
from service.client.images import MAX_IMAGES
from tests.service.client.wire import document, result


class Recorder:
    """A transport that keeps the requests, and answers each with the next of `responses`."""

    def __init__(self, *responses):
        self.requests = []
        self.responses = list(responses)
        self.transport = httpx.MockTransport(self.respond)

    async def respond(self, request):
        self.requests.append(request)
        await request.aread()
        response = self.responses.pop(0) if self.responses else accepting()
        if isinstance(response, Exception):
            raise response
        return response


def accepting(count=1):
    return httpx.Response(200, json=document(*[result()] * count))


def overloaded(**headers):
    problem = {"detail": "the queue is full"}
    content = json.dumps(problem)
    headers = {"Content-Type": "application/problem+json", **headers}
    return httpx.Response(503, content=content, headers=headers)


def refused():
    return httpx.ConnectError("refused")


def client(recorder, base_url="http://gate", **settings):
    return GateClient(base_url, transport=recorder.transport, **settings)


def test_a_request_is_one_image_as_it_is():
    recorder = Recorder()
    with client(recorder, headers={"X-API-Key": "k"}) as gate:
        assert gate.predict(b"\x89PNG").accepted
    (request,) = recorder.requests
    assert (request.method, str(request.url)) == ("POST", "http://gate/predict")
    assert request.content == b"\x89PNG"
    assert request.headers["content-type"] == "application/octet-stream"
    assert request.headers["x-api-key"] == "k"


def test_options_of_a_call_overrule_those_of_the_client():
    recorder = Recorder()
    with client(recorder, "https://gate/under/", policy="strict", explain=True) as gate:
        gate.predict(b"", policy="open", top_k=2, alpha=0.25, members="exact")
        gate.gate(b"", policy=None, explain=False, background=True)
    first, second = (request.url for request in recorder.requests)
    assert first.path == "/under/predict"
    assert dict(first.params) == {
        "policy": "open",
        "explain": "true",
        "top_k": "2",
        "alpha": "0.25",
        "members": "exact",
    }
    assert dict(second.params) == {"explain": "false", "background": "true"}


def test_many_images_go_in_batches_and_come_back_in_order():
    sizes = [MAX_IMAGES, MAX_IMAGES, 3]
    recorder = Recorder(*map(accepting, sizes))
    with client(recorder) as gate:
        answers = gate.predict_many(b"image %d." % index for index in range(sum(sizes)))
    assert len(answers) == sum(sizes)
    assert [request.content.count(b'name="files"') for request in recorder.requests] == sizes
    last = recorder.requests[-1].content
    assert [last.index(b"image %d." % index) for index in range(512, 515)] == sorted(
        last.index(b"image %d." % index) for index in range(512, 515)
    )


def test_a_batch_without_an_answer_abstains_and_the_others_do_not():
    recorder = Recorder(accepting(MAX_IMAGES), overloaded(), accepting(1))
    with client(recorder) as gate:
        answers = gate.gate_many([b"image"] * (2 * MAX_IMAGES + 1))
    reasons = [answer.reasons for answer in answers]
    assert reasons == [()] * MAX_IMAGES + [("unavailable",)] * MAX_IMAGES + [()]
    assert answers[MAX_IMAGES].error == "status 503: the queue is full"
    with client(Recorder(overloaded())) as gate, pytest.raises(StatusError):
        gate.predict_many([b"image"])


@pytest.mark.parametrize(
    ("response", "settings", "error"),
    [
        (refused(), {}, ConnectError),
        (httpx.ReadError("reset"), {}, ConnectError),
        (httpx.RemoteProtocolError("cut"), {}, ConnectError),
        (httpx.ReadTimeout("slow"), {}, DeadlineError),
        (httpx.DecodingError("no gzip"), {}, MalformedAnswerError),
        (httpx.Response(200, text="hello"), {}, MalformedAnswerError),
        (overloaded(), {}, StatusError),
        (None, {"expected_digest": "sha256:00"}, ModelMismatchError),
        (None, {"require_certificate": True}, CertificateError),
    ],
)
def test_predict_raises_and_gate_abstains(response, settings, error):
    with client(Recorder(response or accepting()), **settings) as gate:
        with pytest.raises(error) as caught:
            gate.predict(b"image")
        assert type(caught.value) is error
    with client(Recorder(response or accepting()), **settings) as gate:
        answer = gate.gate(b"image")
        assert (answer.decision, answer.reasons) == ("abstain", (caught.value.reason,))
        assert answer.error == str(caught.value)
        assert not answer.accepted


def test_what_the_caller_itself_cannot_read_is_raised(tmp_path):
    with client(Recorder()) as gate:
        with pytest.raises(FileNotFoundError):
            gate.gate(tmp_path / "none.png")
        with pytest.raises(TypeError):
            gate.gate(3)


def test_an_answer_that_is_too_long_is_not_read(monkeypatch):
    monkeypatch.setattr("service.client.asynchronous.MAX_ANSWER_BYTES", 100)
    with client(Recorder()) as gate:
        assert gate.gate(b"image").reasons == ("malformed",)


def test_without_retries_one_try_is_all():
    recorder = Recorder(refused())
    with client(recorder) as gate:
        assert gate.gate(b"image").reasons == ("unavailable",)
    assert len(recorder.requests) == 1


def test_retries_of_connections_and_of_what_says_when():
    recorder = Recorder(refused(), overloaded(**{"Retry-After": "0"}), refused())
    with client(recorder, retries=3) as gate:
        assert gate.predict(b"image").accepted
    assert [request.content for request in recorder.requests] == [b"image"] * 4
    recorder = Recorder(refused(), refused(), refused())
    with client(recorder, retries=2) as gate, pytest.raises(ConnectError):
        gate.predict(b"image")
    assert len(recorder.requests) == 3


@pytest.mark.parametrize(
    "response",
    [
        overloaded(),
        overloaded(**{"Retry-After": "60"}),
        httpx.Response(500, headers={"Retry-After": "0"}),
        httpx.Response(429, headers={"Retry-After": "0"}),
        httpx.ReadTimeout("slow"),
    ],
)
def test_nothing_else_is_tried_again(response):
    recorder = Recorder(response)
    with client(recorder, retries=5) as gate:
        assert not gate.gate(b"image").accepted
    assert len(recorder.requests) == 1


def test_retries_end_at_the_timeout():
    recorder = Recorder(*[refused()] * 50)
    began = time.monotonic()
    with client(recorder, retries=50, timeout=0.3) as gate:
        assert gate.gate(b"image").reasons == ("deadline",)
    assert time.monotonic() - began < 2
    assert 2 <= len(recorder.requests) <= 4


@pytest.mark.parametrize("base_url", ["gate:8000", "ftp://gate", "http://", "", "http://[::"])
def test_an_address_that_is_none(base_url):
    with pytest.raises(ValueError, match=r"is no (http or https )?address"):
        GateClient(base_url)


def test_many_threads_share_a_client_whose_thread_ends_with_it():
    answers = []
    with client(Recorder()) as gate:
        threads = [
            threading.Thread(target=lambda: answers.append(gate.gate(b"image"))) for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert "gate-client" in [thread.name for thread in threading.enumerate()]
    assert "gate-client" not in [thread.name for thread in threading.enumerate()]
    assert [answer.accepted for answer in answers] == [True] * 20
    with pytest.raises(RuntimeError, match="closed"):
        gate.gate(b"image")
    gate.close()


def test_a_client_that_was_never_asked_closes():
    with client(Recorder()):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_after_a_fork_it_says_so_and_does_not_hang():
    with client(Recorder()) as gate:
        gate.gate(b"image")
        child = os.fork()
        if child == 0:
            try:
                gate.gate(b"image")
            except RuntimeError as error:
                os._exit(0 if "fork" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.anyio
async def test_the_asynchronous_client_asks_at_once():
    recorder = Recorder()
    async with AsyncGateClient("http://gate", transport=recorder.transport) as gate:
        answers = await asyncio.gather(*[gate.gate(b"image") for _ in range(8)])
        assert (await gate.predict(b"image")).accepted
        assert [a.accepted for a in await gate.predict_many([b"image"])] == [True]
        assert [a.accepted for a in await gate.gate_many([b"image"])] == [True]
    assert [answer.accepted for answer in answers] == [True] * 8
