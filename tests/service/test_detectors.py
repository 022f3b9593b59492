"""Which detectors an answer lists: those that the flag rests on, and with `explain` all."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from models.detectors import DETECTORS
from service.repository import Model, open_model
from service.runtime import everything
from service.settings import EMBEDDED_BUNDLE
from tests.service import tiny

pytestmark = pytest.mark.anyio

BLENDED = {*tiny.FUSED, "fused"}


@pytest.fixture(scope="module")
def shipped(settings) -> Model:
    return open_model(settings.model_copy(update={"bundle": EMBEDDED_BUNDLE, "runtime": "onnx"}))


@pytest.fixture(scope="module")
def many(images, encode):
    return [("files", (f"{index}", encode(image))) for index, image in enumerate(images)]


async def results(client, files, **query):
    response = await client.post("/predict", files=files, params=query)
    assert response.status_code == 200, response.text
    return response.json()["results"]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("default", {"predictive_entropy"}),
        ("quick", {"predictive_entropy"}),
        ("by_class", {"predictive_entropy"}),
        ("shapely", {"shape"}),
        ("featured", {"feature_subspaces"}),
        ("blended", BLENDED),
    ],
)
@pytest.mark.parametrize("query", [{}, {"fdr": 0.5}, {"members": "exact"}, {"top_k": 1}], ids=str)
async def test_an_answer_lists_what_its_flag_rests_on(client, many, policy, expected, query):
    """And of each the score and p-value that it has among all."""
    plain = await results(client, many, policy=policy, **query)
    explained = await results(client, many, policy=policy, explain=True, **query)
    for one, whole in zip(plain, explained, strict=True):
        assert set(one["ood"]["detectors"]) == expected
        assert set(whole["ood"]["detectors"]) == set(DETECTORS)
        every = whole["ood"].pop("detectors")
        assert one["ood"].pop("detectors").items() <= every.items()
        assert one["ood"] == whole["ood"]


async def test_of_the_shipped_model(start, shipped, many):
    fused = shipped.bundle.detectors.surprises
    score = shipped.manifest.policies["lenient"].score
    assert score not in (None, shipped.manifest.calibration.score)
    async with start(shipped) as client:
        for policy, names in (
            ("default", {*fused, "fused"}),
            ("lenient", {score}),
        ):
            plain = await results(client, many, policy=policy)
            explained = await results(client, many, policy=policy, explain=True)
            for one, whole in zip(plain, explained, strict=True):
                assert set(one["ood"]["detectors"]) == names
                assert set(whole["ood"]["detectors"]) == set(DETECTORS)
                assert one["ood"]["detectors"].items() <= whole["ood"]["detectors"].items()
                for field in ("detector", "score", "p_value", "level", "flag"):
                    assert one["ood"][field] == whole["ood"][field]


async def test_an_image_that_could_not_be_judged_lists_the_same(start, with_logits, png):
    def logits(batch):
        return np.full((len(batch), tiny.M, tiny.K), np.nan, np.float32)

    unknown = {"score": None, "p_value": 1 / (tiny.CALIBRATION + 1)}
    async with start(with_logits(logits)) as client:
        for policy, names in (("default", {"predictive_entropy"}), ("blended", BLENDED)):
            (lost,) = await results(client, {"files": ("a", png)}, policy=policy)
            assert lost["ood"]["detectors"] == dict.fromkeys(names, unknown)


@pytest.mark.parametrize("explained", [False, True])
async def test_a_neighbour_that_is_explained_changes_nothing(
    start, model, with_logits, many, explained
):
    """Its images share the steps of the others, which are not asked more for it."""
    entered, release = threading.Event(), threading.Event()

    def logits(batch):
        entered.set()
        assert release.wait(20)
        return everything(model.runtime, batch).logits

    async with start(with_logits(logits), max_batch_images=32) as client:
        first = asyncio.ensure_future(results(client, many[:1]))
        assert await asyncio.to_thread(entered.wait, 20)
        one = asyncio.ensure_future(results(client, many[:9], policy="blended"))
        other = asyncio.ensure_future(
            results(client, many[6:], policy="blended", explain=explained)
        )
        await client.until_queued(9 + 6)
        release.set()
        shared = await one
        await asyncio.gather(first, other)
        assert shared == await results(client, many[:9], policy="blended")
    assert {frozenset(each["ood"]["detectors"]) for each in shared} == {frozenset(BLENDED)}
