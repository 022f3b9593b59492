"""What conformal prediction promises, from a client's side: sets, levels, classes, discoveries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.conformal import benjamini_hochberg, conditional_level
from models.preprocessing import prepare
from models.uncertainty import summarise
from service.offline import answer_files
from service.runtime import everything
from tests.service import tiny

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def many(images, encode):
    """12 images as the files of one request."""
    return [("files", (f"{index}", encode(image))) for index, image in enumerate(images)]


@pytest.fixture
async def ask(client, many):
    """Ask about them; returns the whole answer."""

    async def post(files=many, **query):
        response = await client.post("/predict", files=files, params=query)
        assert response.status_code == 200, response.text
        return response.json()

    return post


async def test_sets_are_those_that_evaluation_computes_the_most_probable_label_first(
    ask, model, images
):
    labels = model.manifest.labels
    sets = model.manifest.prediction_sets.fitted
    prepared = prepare(images, model.manifest.input)[0]
    logits = everything(model.runtime, prepared).logits
    first = summarise(logits[:, : model.manifest.members.group]).probabilities
    told = summarise(logits).probabilities
    results = (await ask())["results"]
    for row, inside, result in zip(told, sets.sets(first), results, strict=True):
        assert set(result["prediction_set"]) == {labels[index] for index in np.nonzero(inside)[0]}
        known = [result["probabilities"][label] for label in result["prediction_set"]]
        assert known == sorted(known, reverse=True)
        assert known == pytest.approx(sorted(row[inside], reverse=True))
    sizes = {len(result["prediction_set"]) for result in results}
    assert len(sizes) > 1
    fewer = (await ask(top_k=1))["results"]
    assert [each["prediction_set"] for each in fewer] == [
        each["prediction_set"] for each in results
    ]


async def test_a_bundle_without_sets_answers_without_them(start, model, many):
    without = model.manifest.model_copy(update={"prediction_sets": None})
    async with start(replace(model, bundle=replace(model.bundle, manifest=without))) as client:
        answer = (await client.post("/predict", files=many)).json()
        assert {result["prediction_set"] for result in answer["results"]} == {None}
        (entry,) = (await client.get("/models")).json()["models"]
        assert entry["prediction_sets"] is None


async def test_a_policy_with_confidence_compares_with_the_conditional_level(ask, model):
    size = model.manifest.calibration.size
    sure = await ask(policy="sure")
    plain = await ask(policy="open", alpha=0.3)
    level = conditional_level(0.3, size, 0.9)
    assert level < 0.3
    for one, other in zip(sure["results"], plain["results"], strict=True):
        assert one["ood"]["alpha"] == other["ood"]["alpha"] == 0.3
        assert (one["ood"]["level"], other["ood"]["level"]) == (level, 0.3)
        assert one["ood"]["p_value"] == other["ood"]["p_value"]
        assert one["ood"]["flag"] == (one["ood"]["p_value"] <= level)
        assert one["reasons"] == (["ood"] if one["ood"]["flag"] else [])
    changed = (await ask(policy="sure", alpha=0.5))["results"][0]["ood"]
    assert (changed["alpha"], changed["level"]) == (0.5, conditional_level(0.5, size, 0.9))


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"policy": "sure", "alpha": 0.001}, "99 calibration images do not keep alpha 0.001 with"),
        ({"policy": "by_class", "alpha": 0.001}, "do not keep alpha 0.001 within it: 999 are"),
    ],
)
async def test_an_alpha_that_the_policy_cannot_keep(client, many, query, reason):
    response = await client.post("/predict", files=many, params=query)
    assert response.status_code == 422
    problem = response.json()
    assert reason in problem["detail"]
    assert problem["errors"][0]["pointer"] == "/query/alpha"


async def test_a_policy_by_class_compares_within_the_predicted_class(ask, model):
    results = (await ask(policy="by_class", explain="true"))["results"]
    tests = model.bundle.calibration.class_tests["predictive_entropy"].tests
    classes = set()
    for result in results:
        ood, first = result["ood"], result["members"][: tiny.GROUP]
        sums = [sum(each[label] for each in first) for label in model.manifest.labels]
        guess = int(np.argmax(sums))
        classes.add(guess)
        test = tests[guess]
        assert ood["p_value"] == test.p_values(np.array([ood["score"]]))[0]
        assert ood["flag"] == (ood["p_value"] <= 0.3) == (result["reasons"] == ["ood"])
        assert ood["level"] == ood["alpha"] == 0.3
    seen = [result["ood"] for result in results]
    assert any(ood["p_value"] != ood["detectors"][ood["detector"]]["p_value"] for ood in seen)
    assert len(classes) > 1


@pytest.mark.parametrize("policy", ["open", "by_class"])
@pytest.mark.parametrize(("rate", "found"), [(0.05, False), (0.95, True)])
async def test_discoveries_are_made_among_the_images_of_the_request(ask, policy, rate, found):
    plain, answer = await ask(policy=policy), await ask(policy=policy, fdr=rate)
    p_values = np.array([result["ood"]["p_value"] for result in plain["results"]])
    level = benjamini_hochberg(p_values, rate)
    assert answer["certificate"] is None
    for result, p_value in zip(answer["results"], p_values.tolist(), strict=True):
        ood = result["ood"]
        assert (ood["alpha"], ood["fdr"], ood["level"]) == (None, rate, level)
        assert ood["p_value"] == p_value
        assert ood["flag"] == (p_value <= level) == (result["reasons"] == ["ood"])
    assert (level > 0) is found


async def test_images_that_could_not_be_judged_are_no_evidence(
    start, model, with_logits, encode, many
):
    """They change no level, and are never accepted."""

    def logits(batch):
        values = everything(model.runtime, batch).logits
        values[batch.mean(axis=(1, 2, 3)) > 0.8] = np.nan
        return values

    bright = np.pad(np.full((6, 6), 255, np.uint8), 1)
    unjudged = [("files", ("bright", encode(bright))), ("files", ("bad", b"no image"))]
    query = {"policy": "open", "fdr": 0.95}
    async with start(with_logits(logits)) as client:
        alone = (await client.post("/predict", files=many, params=query)).json()["results"]
        answer = await client.post("/predict", files=many + unjudged, params=query)
    assert alone[0]["ood"]["level"] > 0
    *same, lost, bad = answer.json()["results"]
    assert same == alone
    assert lost["ood"]["flag"] is True
    assert lost["ood"]["level"] == alone[0]["ood"]["level"]
    assert (lost["decision"], bad["decision"]) == ("abstain", "abstain")
    assert bad["ood"] is None


async def test_offline_answers_have_sets_too(model, settings, many, tmp_path):
    (_, (_, content)) = many[0]
    (tmp_path / "image.png").write_bytes(content)
    (result,) = answer_files(model, settings, [tmp_path / "image.png"])["results"]
    assert result["prediction_set"]
