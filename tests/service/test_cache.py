"""A hit changes no answer, and no answer is given for another bundle, policy or image."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.detectors import DETECTORS
from models.policy import Policy
from models.preprocessing import prepare
from models.uncertainty import summarise
from service.api.body import SMALL_BYTES
from service.cache import CaseCache
from service.cases import Case, Rule
from service.errors import InvalidError
from service.evidence import Evidence, FirstLook
from service.intake import Prepared, Sent
from service.runtime import everything
from service.settings import Settings

pytestmark = pytest.mark.anyio

PNG = {"Content-Type": "image/png"}
JSON = {"Content-Type": "application/json"}
RULE = Rule(Policy(alpha=0.1, min_probability=0.5), 0.1, frozenset({"energy"}))
NOTHING = FirstLook(True, np.ones(1), (0.0, 0.0, 0.0), {}, {})


def sent(number: int) -> Sent:
    return Sent(bytes([number]), f"/body/files/{number}")


def settled(finite: bool = True) -> Case:
    logits = np.zeros((2, 3), dtype=np.float32)
    evidence = Evidence(logits, finite, np.ones(3) / 3, (0.0, 0.0, 0.0), NOTHING)
    return Case(Prepared(logits, {}), RULE, evidence=evidence)


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=40),
)
def test_it_holds_the_last_that_were_asked_for(size, uses):
    """Against a list of images, the least recently asked first."""
    cache, held, kept = CaseCache(size), list[int](), dict[int, Case]()
    for writes, number in uses:
        key = cache.key("bundle", RULE, sent(number))
        if writes:
            kept[number] = settled()
            cache.put(key, kept[number])
            held = [*(each for each in held if each != number), number][-size:]
        else:
            found = cache.get(key)
            assert found is (kept[number] if number in held else None)
            if found:
                held = [*(each for each in held if each != number), number]
        assert len(cache) == len(held) <= size


def test_without_a_size_it_holds_nothing():
    cache = CaseCache(Settings().cache_images)
    key = cache.key("bundle", RULE, sent(1))
    assert key is None
    cache.put(key, settled())
    assert cache.get(key) is None
    assert len(cache) == 0


def test_the_same_image_of_another_request_is_known_again():
    cache = CaseCache(2)
    cache.put(cache.key("bundle", RULE, Sent({"pixels": [[1, 2]]}, "/a")), kept := settled())
    alike = Rule(RULE.policy.model_copy(), RULE.level, frozenset(["energy"]))
    assert cache.get(cache.key("bundle", alike, Sent({"pixels": [[1, 2]]}, "/b"))) is kept


@pytest.mark.parametrize(
    "other",
    [
        ("another bundle", RULE, sent(1)),
        ("bundle", replace(RULE, level=0.2), sent(1)),
        ("bundle", replace(RULE, level=None), sent(1)),
        ("bundle", replace(RULE, policy=Policy(alpha=0.1, min_probability=0.6)), sent(1)),
        (
            "bundle",
            replace(RULE, policy=RULE.policy.model_copy(update={"members": "exact"})),
            sent(1),
        ),
        ("bundle", replace(RULE, detectors=frozenset(DETECTORS)), sent(1)),
        ("bundle", RULE, sent(2)),
    ],
    ids=["bundle", "level", "fdr", "threshold", "members", "detectors", "image"],
)
def test_nothing_is_known_of_another(other):
    cache = CaseCache(9)
    cache.put(cache.key("bundle", RULE, sent(1)), settled())
    assert cache.get(cache.key(*other)) is None


DIFFERENT = [
    b"1",
    "1",
    b"'1'",
    "'1'",
    1,
    1.0,
    True,
    None,
    "None",
    [1],
    {"pixels": [[1]]},
    {"pixels": [[1.0]]},
    {"pixels": [[True]]},
    {"pixels": [["1"]]},
    {"pixels": [[1]], "maximum": 1},
    {"pixels": [[1, 1]]},
    {"pixels": [[1], [1]]},
    {"pixels": [[[1, 1, 1]]]},
    {"base64": "YQ=="},
    {"base64": "\ud800"},
    {"base64": "\\ud800"},
]


def test_what_is_sent_differently_is_kept_apart():
    """Above all what is an image from what is none, though Python may call the two equal."""
    cache = CaseCache(99)
    keys = [cache.key("bundle", RULE, Sent(each, "")) for each in DIFFERENT]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_what_is_not_finite_or_no_image_is_not_kept():
    cache = CaseCache(9)
    key = cache.key("bundle", RULE, sent(1))
    damaged = Case(InvalidError("damaged"), RULE)
    for nothing in (settled(finite=False), damaged, InvalidError("no image")):
        cache.put(key, nothing)
        assert cache.get(key) is None
    assert len(cache) == 0


async def test_lists_within_lists_are_no_image_with_a_cache_either(start):
    """They are read in a thread, which may go deeper than what looks for them in the cache."""
    statuses = set()
    async with start(cache_images=9) as client:
        for depth in (*range(100, 1000, 25), 100_000):
            body = f'{{"images": [{"[" * depth}{"]" * depth}]}}' + " " * SMALL_BYTES
            response = await client.post("/predict", content=body, headers=JSON)
            statuses.add(response.status_code)
    assert statuses == {400, 422}


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
    {"explain": "true", "policy": "quick"},
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


async def test_what_an_answer_shows_is_no_part_of_the_key(start, client, png):
    """Nor is the way in which a file was sent, and of what name."""
    queries = [{"top_k": 1}, {"background": "true"}, {"members": "all"}]
    async with start(cache_images=1) as caching:
        await caching.post("/predict", content=png, headers=PNG)
        for query in queries:
            expected = await client.post("/predict", content=png, params=query)
            answer = await caching.post("/predict", content=png, params=query)
            assert content(answer.json()) == content(expected.json())
            assert answer.json()["timing_ms"]["infer"] == 0
        assert (await caching.post("/predict", files={"files": ("b", png)})).status_code == 200
        assert await counts(caching) == (1, 4)


async def test_what_is_asked_of_all_detectors_is_an_entry_of_its_own(start, png):
    async with start(cache_images=2) as caching:
        shown = []
        for explain in ("false", "true", "true", "false"):
            answer = await caching.post("/predict", content=png, params={"explain": explain})
            shown.append(len(answer.json()["results"][0]["ood"]["detectors"]))
        assert shown == [1, len(DETECTORS), len(DETECTORS), 1]
        assert await counts(caching) == (2, 2)


async def test_a_hit_is_not_decoded(start, png, encode, monkeypatch):
    large = encode(np.zeros((200, 200), np.uint8))
    async with start(cache_images=2) as caching:
        first = [await caching.post("/predict", content=each) for each in (png, large)]
        monkeypatch.setattr("service.intake.open_image", None)
        again = [await caching.post("/predict", content=each) for each in (png, large)]
        for one, other in zip(first, again, strict=True):
            assert content(one.json()) == content(other.json())


SPELLINGS = [
    b'{"pixels": [[0, 1, 0.5], [1.0, 0.25, 0]], "maximum": 1}',
    b'{"pixels":[[0,1,0.50],[1.00,2.5e-1,0]],"maximum":1}',
    b'\n{"\\u0070ixels": [ [0, 1, 5E-1], [10.0e-1, 0.250, 0] ], "maximum": 1 }',
]


async def test_an_item_is_known_however_it_is_spelt(start, client):
    async with start(cache_images=9) as caching:
        for known, item in enumerate(SPELLINGS):
            body = b'{"images": [%b]}' % item
            answer = await caching.post("/predict", content=body, headers=JSON)
            expected = await client.post("/predict", content=body, headers=JSON)
            assert answer.status_code == 200
            assert content(answer.json()) == content(expected.json())
            assert await counts(caching) == (1, known)


async def test_one_image_sent_as_a_file_in_base64_or_as_numbers(start, client, images, png):
    """Each is found by itself only, and has the same answer from the cache or not."""
    items = [
        {"base64": base64.b64encode(png).decode()},
        {"pixels": images[0, :, :, 0].tolist()},
        {"pixels": (images[0, :, :, 0] / 255).tolist(), "maximum": 1},
    ]
    expected = content((await client.post("/predict", content=png)).json())
    async with start(cache_images=9) as caching:
        for known in (0, 4):
            answers = [await caching.post("/predict", json={"images": [item]}) for item in items]
            answers.append(await caching.post("/predict", content=png))
            assert [content(answer.json()) for answer in answers] == [expected] * 4
            assert await counts(caching) == (4, known)


async def test_what_equals_an_image_that_is_known_is_none_all_the_same(start):
    """1, 1.0 and true are equal to Python, but only the first is a grey value of 0 to 255."""
    async with start(cache_images=9) as caching:
        for value, status in (("1", 200), ("1.0", 422), ("true", 422), ("1", 200)):
            body = f'{{"images": [{{"pixels": [[{value}]]}}]}}'
            response = await caching.post("/predict", content=body, headers=JSON)
            assert response.status_code == status
        assert await counts(caching) == (1, 1)


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
