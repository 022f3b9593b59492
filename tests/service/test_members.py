"""How many members the images of a request are shown to, from a client's side."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest

from service.offline import answer_files
from service.runtime import everything

pytestmark = pytest.mark.anyio

GROUP, MEMBERS = 2, 10
AGREED = {"mode": "confident", "available": MEMBERS, "differing_rate": 0.125, "confidence": 0.95}


def certain(mode):
    """What is told where every decision is that of all members."""
    return {"mode": mode, "available": MEMBERS, "differing_rate": 0.0, "confidence": 1.0}


@pytest.fixture(scope="module")
def many(images, encode):
    """12 images as the files of one request."""
    return [("files", (f"{index}", encode(image))) for index, image in enumerate(images)]


@pytest.fixture
async def ask(client, many):
    async def post(**query):
        response = await client.post("/predict", files=many, params=query)
        assert response.status_code == 200, response.text
        return response.json()

    return post


def used(answer):
    return [result["members_used"] for result in answer["results"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, certain("all")),
        ({"members": "all"}, certain("all")),
        ({"members": "exact"}, certain("exact")),
        ({"policy": "quick"}, AGREED),
        ({"policy": "quick", "members": "confident"}, AGREED),
        ({"policy": "quick", "members": "exact"}, certain("exact")),
        ({"policy": "quick", "members": "all"}, certain("all")),
        ({"policy": "quick", "explain": True}, certain("all")),
        ({"policy": "quick", "explain": True, "members": "exact"}, certain("all")),
        ({"policy": "quick", "alpha": 0.2}, AGREED),
        ({"policy": "quick", "fdr": 0.3}, AGREED),
    ],
    ids=str,
)
async def test_the_answer_says_how_many_are_asked_and_what_that_may_change(ask, query, expected):
    answer = await ask(**query)
    assert answer["members"] == expected
    if expected["mode"] == "all":
        assert set(used(answer)) == {MEMBERS}
    for result in answer["results"]:
        assert result["ood"]["members_used"] == GROUP
        if query.get("explain"):
            assert len(result["members"]) == MEMBERS


async def test_modes_decide_alike_and_take_less(ask):
    """With exact all decisions are those of all; flag, p-values and sets are so in every mode."""
    everyone = await ask(policy="quick", members="all")
    exact, confident = await ask(policy="quick", members="exact"), await ask(policy="quick")
    assert sum(used(confident)) < sum(used(exact)) < sum(used(everyone))
    assert set(used(exact)) == set(used(confident)) == {2, 8, 10}
    for one, sure, of_all in zip(
        exact["results"], confident["results"], everyone["results"], strict=True
    ):
        flag = of_all["ood"]["flag"]
        assert one["ood"] == sure["ood"] == of_all["ood"]
        assert set(one["prediction_set"]) == set(sure["prediction_set"])
        assert set(one["prediction_set"]) == set(of_all["prediction_set"])
        assert one["decision"] == of_all["decision"]
        assert flag or one["label"] == of_all["label"]
        assert not flag or one["members_used"] == sure["members_used"] == GROUP
    assert any(result["ood"]["flag"] for result in everyone["results"])


async def test_with_a_rate_of_false_discoveries_no_flag_spares_members(ask):
    """Whom it flags is known when all images of the request have been looked at."""
    discoveries = await ask(policy="quick", fdr=0.95)
    unflagged = await ask(policy="quick", alpha=1e-9)
    assert any(result["ood"]["flag"] for result in discoveries["results"])
    assert not any(result["ood"]["flag"] for result in unflagged["results"])
    assert used(discoveries) == used(unflagged)
    for one, other in zip(discoveries["results"], unflagged["results"], strict=True):
        assert one["probabilities"] == other["probabilities"]


async def test_only_a_policy_that_was_proved_can_be_confident(client, png):
    query = {"members": "confident", "policy": "open"}
    response = await client.post("/predict", content=png, params=query)
    assert response.status_code == 422
    assert "'open' is not confident: use members = all or exact" in response.json()["detail"]
    query = {"members": "confident", "policy": "quick"}
    assert (await client.post("/predict", content=png, params=query)).status_code == 200


@pytest.mark.parametrize("background", ["true", "false"])
async def test_the_background_gets_the_same_answer(ask, background):
    expected, answer = await ask(policy="quick"), await ask(policy="quick", background=background)
    assert answer["results"] == expected["results"]


async def test_the_background_has_half_of_the_queue(start, many):
    async with start(max_queue_images=16) as client:
        for background, status in (("true", 503), ("false", 200)):
            query = {"background": background}
            response = await client.post("/predict", files=many, params=query)
            assert response.status_code == status


async def test_offline_answers_ask_as_many(ask, model, settings, many, tmp_path):
    quick, files = settings.model_copy(update={"policy": "quick"}), []
    for _, (name, content) in many:
        files.append(tmp_path / name)
        files[-1].write_bytes(content)
    offline, served = answer_files(model, quick, files), await ask(policy="quick")
    assert offline["members"] == AGREED
    assert used(offline) == used(served)
    assert [result["probabilities"] for result in offline["results"]] == [
        result["probabilities"] for result in served["results"]
    ]


async def test_metrics_tell_how_many_were_asked(ask, client):
    answer = await ask(policy="quick")
    text = (await client.get("/metrics")).text
    counts = Counter(used(answer))
    assert f'gate_members_evaluated_bucket{{le="2.0"}} {counts[2]:.1f}' in text
    assert f'gate_members_evaluated_bucket{{le="4.0"}} {counts[2] + counts[4]:.1f}' in text
    assert f"gate_members_evaluated_sum {sum(used(answer)):.1f}" in text
    assert "gate_inference_images_total 12.0" in text


QUERIES = [
    {},
    {"policy": "strict"},
    {"alpha": 0.25},
    {"top_k": 1},
    {"explain": "true"},
    {"policy": "quick"},
    {"policy": "quick", "members": "exact"},
    {"fdr": 0.5},
]


async def test_options_of_one_request_do_not_reach_its_neighbours(
    start, model, with_logits, png, images, encode
):
    """Requests with different options, answered from the same steps."""
    entered, release = threading.Event(), threading.Event()
    sizes = []

    def logits(batch):
        sizes.append(len(batch))
        entered.set()
        assert release.wait(20)
        return everything(model.runtime, batch).logits

    async with start(with_logits(logits), max_batch_images=8) as client:

        def ask(query):
            return asyncio.ensure_future(
                client.post("/predict", content=encode(images[3]), params=query)
            )

        first = asyncio.ensure_future(client.post("/predict", content=png))
        assert await asyncio.to_thread(entered.wait, 20)
        tasks = [ask(query) for query in QUERIES]
        await client.until_queued(len(QUERIES))
        release.set()
        together = [(await task).json() for task in tasks]
        await first
        assert sizes[:4] == [1, 5, 1, 2], "explain is by itself"
        alone = [(await ask(query)).json() for query in QUERIES]
    for one, other in zip(together, alone, strict=True):
        for field in ("results", "policy", "members", "certificate"):
            assert one[field] == other[field]
    shown = [len(answer["results"][0]["probabilities"]) for answer in together]
    assert shown == [3, 3, 3, 1, 3, 3, 3, 3]
    alphas = [answer["results"][0]["ood"]["alpha"] for answer in together]
    assert alphas == [0.05, 0.5, 0.25, 0.05, 0.05, 0.3, 0.3, None]
