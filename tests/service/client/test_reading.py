"""From an answer of the service's, or of anything else, to what a caller acts on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import Answer, GateClient, MalformedAnswerError, Ood, StatusError, Uncertainty
from service.client.reading import Reply, Terms, read_answers
from service.schemas import PredictResponse
from tests.service.client.wire import DIGEST, certificate, document, result

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text(encoding="utf-8"))
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_conformance_vectors(vector):
    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(vector["status"], headers=vector["headers"], content=vector["body"])

    with GateClient(
        "http://gate", transport=httpx.MockTransport(respond), **vector["terms"]
    ) as client:
        answer = client.gate(b"image")
    assert (answer.decision, list(answer.reasons)) == (vector["decision"], vector["reasons"])
    assert answer.accepted == (vector["decision"] == "accept")


def test_vectors_have_names_of_their_own_and_every_reason():
    assert len({vector["name"] for vector in VECTORS}) == len(VECTORS)
    reasons = {reason for vector in VECTORS for reason in vector["reasons"]}
    own = {"deadline", "unavailable", "rejected", "malformed", "model", "certificate", "input"}
    assert own < reasons


def test_the_vectors_answers_are_those_of_the_service():
    PredictResponse.model_validate(document())
    PredictResponse.model_validate(document(certificate=certificate()))
    assert json.dumps(document()) in [vector["body"] for vector in VECTORS]


def read(content: object, count: int = 1) -> list[Answer]:
    return read_answers(Reply(200, JSON, json.dumps(content).encode()), count, Terms())


def test_every_field_of_an_answer():
    (answer,) = read(document(certificate=certificate()))
    assert answer == Answer(
        decision="accept",
        reasons=(),
        label="bee",
        probabilities={"ant": 0.01, "bee": 0.98, "cat": 0.01},
        uncertainty=Uncertainty(0.112, 0.1, 0.012),
        ood=Ood(flag=False, p_value=0.61),
        prediction_set=("bee",),
        members_used=6,
        request_id="r-1",
        model_digest=DIGEST,
        certificate=certificate(),
        error=None,
        raw=result(),
    )


READ = {
    "results": list,
    "model": dict,
    "certificate": dict,
    "request_id": str,
    "results/0/decision": str,
    "results/0/reasons": list,
    "results/0/label": str,
    "results/0/probabilities": dict,
    "results/0/probabilities/bee": float,
    "results/0/uncertainty": dict,
    "results/0/uncertainty/predictive_entropy": float,
    "results/0/uncertainty/expected_entropy": float,
    "results/0/uncertainty/mutual_information": float,
    "results/0/ood": dict,
    "results/0/ood/flag": bool,
    "results/0/ood/p_value": float,
    "results/0/prediction_set": list,
    "results/0/members_used": int,
    "results/0/error": dict,
    "model/digest": str,
}


def fits(value: object, kind: type) -> bool:
    """JSON does not tell 7 from 7.0, but a bool is no number."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def changed(path: str) -> Iterator[Any]:
    """The answer without this field, and with values of every other type."""
    *parents, last = path.split("/")
    for value in (None, 7, 0.5, True, "text", [1], {"a": 1}):
        content = deepcopy(document())
        holder: Any = content
        for name in parents:
            holder = holder[int(name) if name.isdecimal() else name]
        if value is None:
            del holder[last]
        elif fits(value, READ[path]):
            continue
        else:
            holder[last] = value
        yield content


@pytest.mark.parametrize("path", READ)
def test_an_answer_that_lacks_a_field_or_has_another_type_is_malformed(path):
    contents = list(changed(path))
    assert len(contents) >= 5
    for content in contents:
        with pytest.raises(MalformedAnswerError):
            read(content)


@pytest.mark.parametrize("body", [b"\xff\xfe\xfd", b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}"])
def test_bytes_that_are_no_json_are_malformed(body):
    with pytest.raises(MalformedAnswerError):
        read_answers(Reply(200, JSON, body), 1, Terms())


def test_an_error_tells_its_detail():
    problem = {"detail": "the queue is full", "request_id": "r-9", "status": 503}
    headers = {"content-type": "application/problem+json", "retry-after": "3"}
    with pytest.raises(StatusError, match="status 503: the queue is full") as caught:
        read_answers(Reply(503, headers, json.dumps(problem).encode()), 1, Terms())
    assert caught.value.status == 503
    assert caught.value.problem == problem
    assert caught.value.retry_after == 3
    assert caught.value.request_id == "r-9"


def test_a_retry_after_that_is_a_date_is_passed_over():
    assert Reply(503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"").retry_after is None
    assert Reply(503, {"retry-after": "9" * 5000}, b"").retry_after is None
