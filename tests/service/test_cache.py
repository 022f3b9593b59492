"""A hit changes no answer, and no answer is given for another bundle, policy or image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.policy import Policy
from models.preprocessing import prepare
from models.uncertainty import summarise
from service.cache import EvidenceCache
from service.cases import Rule
from service.evidence import Evidence, FirstLook
from service.runtime import everything
from service.settings import Settings

pytestmark = pytest.mark.anyio

PNG = {"Content-Type": "image/png"}
RULE = Rule(Policy(alpha=0.1, min_probability=0.5), 0.1)
NOTHING = FirstLook(True, np.ones(1), (0.0, 0.0, 0.0), {}, {})


def image(value: float) -> np.ndarray:
    return np.full((1, 1, 2, 2), value, dtype=np.float32)


def evidence(value: float = 0.0) -> Evidence:
    logits = np.full((2, 3), value, dtype=np.float32)
    return Evidence(logits, True, np.ones(3) / 3, (0.0, 0.0, 0.0), NOTHING)


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=40),
)
def test_it_holds_the_last_that_were_asked_for(size, uses):
    """Against a list of images, the least recently asked first."""
    cache, held, kept = EvidenceCache(size), list[int](), dict[int, Evidence]()
    for writes, number in uses:
        key = cache.key("bundle", RULE, image(number))
        if writes:
            kept[number] = evidence(number)
            cache.put(key, kept[number])
            held = [*(each for each in held if each != number), number][-size:]
        else:
            found = cache.get(key)
            assert found is (kept[number] if number in held else None)
            if found:
                held = [*(each for each in held if each != number), number]
        assert len(cache) == len(held) <= size


def test_without_a_size_it_holds_nothing():
    cache = EvidenceCache(Settings().cache_images)
    key = cache.key("bundle", RULE, image(1))
    assert key is None
    cache.put(key, evidence())
    assert cache.get(key) is None
    assert len(cache) == 0


def test_the_same_image_of_another_request_is_known_again():
    cache = EvidenceCache(2)
    cache.put(cache.key("bundle", RULE, image(1)), kept := evidence())
    alike = Rule(RULE.policy.model_copy(), RULE.level)
    assert cache.get(cache.key("bundle", alike, image(1).copy())) is kept


@pytest.mark.parametrize(
    "other",
    [
        ("another bundle", RULE, image(1)),
        ("bundle", replace(RULE, level=0.2), image(1)),
        ("bundle", replace(RULE, level=None), image(1)),
        ("bundle", replace(RULE, policy=Policy(alpha=0.1, min_probability=0.6)), image(1)),
        (
            "bundle",
            replace(RULE, policy=RULE.policy.model_copy(update={"members": "exact"})),
            image(1),
        ),
        ("bundle", RULE, np.nextafter(image(1), np.float32(2))),
    ],
    ids=["bundle", "level", "fdr", "threshold", "members", "image"],
)
def test_nothing_is_known_of_another(other):
    cache = EvidenceCache(9)
    cache.put(cache.key("bundle", RULE, image(1)), evidence())
    assert cache.get(cache.key(*other)) is None


def test_what_is_not_finite_is_not_kept():
    cache = EvidenceCache(9)
    key = cache.key("bundle", RULE, image(1))
    cache.put(key, replace(evidence(), finite=False))
    assert cache.get(key) is None
    assert len(cache) == 0


def content(answer):
    return {key: answer[key] for key in answer if key not in ("timing_ms", "request_id")}


async def metric(client, name):
    text = (await client.get("/metrics")).text
    (line,) = [each for each in text.splitlines() if each.startswith(f"{name} ")]
    return float(line.split()[1])


async def counts(client):
    """Images that were inferred, and that were known."""
    names = ("gate_inference_images_total", "gate_cache_hits_total")
    return tuple([await metric(client, name) for name in names])


QUERIES = [
    {},
    {"policy": "strict"},
    {"policy": "quick"},
    {"policy": "quick", "members": "exact"},
    {"policy": "quick", "members": "all"},
    {"alpha": 0.2},
    {"fdr": 0.3},
]


async def test_a_hit_gives_the_answer_of_a_miss(start, client, images, encode):
    """Some images are new, some known, each of them with every query."""
    files = [("files", (f"{index}", encode(each))) for index, each in enumerate(images)]
    async with start(cache_images=1000) as caching:
        for sent, known in ((files[:4], 0), (files, 4), (files[::-1], 12)):
            for query in QUERIES:
                before = await counts(caching)
                expected = await client.post("/predict", files=sent, params=query)
                answer = await caching.post("/predict", files=sent, params=query)
                assert content(answer.json()) == content(expected.json())
                after = await counts(caching)
                assert after == (before[0] + len(sent) - known, before[1] + known), query
    assert (await counts(client))[1] == 0, "it is off by default"


async def test_what_an_answer_shows_is_no_part_of_the_key(start, client, png, images):
    """Nor is the way in which the image was sent."""
    queries = [{"explain": "true"}, {"top_k": 1}, {"background": "true"}, {"members": "all"}]
    async with start(cache_images=1) as caching:
        await caching.post("/predict", content=png, headers=PNG)
        for query in queries:
            expected = await client.post("/predict", content=png, params=query)
            answer = await caching.post("/predict", content=png, params=query)
            assert content(answer.json()) == content(expected.json())
            assert answer.json()["timing_ms"]["infer"] == 0
        pixels = {"images": [{"pixels": images[0, :, :, 0].tolist()}]}
        assert (await caching.post("/predict", json=pixels)).status_code == 200
        assert await counts(caching) == (1, 5)


async def test_the_bound_is_that_of_the_settings(start, images, encode):
    async with start(cache_images=2) as client:
        for index in (0, 1, 0, 2, 0, 1):
            await client.post("/predict", content=encode(images[index]), headers=PNG)
            assert len(client.app.state.gate.cache) <= 2
        assert await counts(client) == (4, 2)


async def test_an_image_that_could_not_be_judged_is_tried_again(
    start, model, with_logits, images, encode
):
    broken = True

    def logits(batch):
        values = everything(model.runtime, batch).logits
        return np.full_like(values, np.nan) if broken else values

    async with start(with_logits(logits), cache_images=9) as client:
        for _ in range(2):
            answer = await client.post("/predict", content=encode(images[0]), headers=PNG)
            assert answer.json()["results"][0]["error"]["status"] == 500
        broken = False
        answer = await client.post("/predict", content=encode(images[0]), headers=PNG)
        assert await counts(client) == (3, 0)
    expected = summarise(
        everything(model.runtime, prepare(images[:1], model.manifest.input)[0]).logits
    )
    (result,) = answer.json()["results"]
    assert list(result["probabilities"].values()) == expected.probabilities[0].tolist()
