"""The shipped model, on real digits and letters, through the code that serves it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from models import bundle as bundles
from models.certificate import clopper_pearson_upper
from models.preprocessing import prepare
from service.cases import Case
from service.intake import Prepared
from service.offline import answer_files
from service.repository import Model, open_model
from service.results import choose_options
from service.settings import EMBEDDED_BUNDLE, Settings

SAMPLES = Path(__file__).parents[2] / "docs" / "samples"
MAX_BYTES = 14_000_000


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(device="cpu", runtime="onnx", threads=1)


@pytest.fixture(scope="module")
def model(settings: Settings) -> Model:
    return open_model(settings)


def test_is_a_small_verified_posterior_ensemble(model: Model) -> None:
    manifest, root = model.manifest, bundles.resolve(EMBEDDED_BUNDLE)
    assert manifest.verdict.verified
    assert manifest.posterior.temperature == 1
    assert (manifest.members.count, manifest.members.group) == (32, 2)
    assert len(set(manifest.members.chains)) >= 4
    assert sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) <= MAX_BYTES


def test_reports_what_the_project_asks_of_it(model: Model) -> None:
    test = model.manifest.results["test"]
    assert test["accuracy"] >= 0.992
    assert test["nll"] <= 0.030
    assert 0.007 <= test["flag_rate"][model.manifest.calibration.score]["0.01"] <= 0.013


def test_keeps_its_conformal_promises_on_the_test_set(model: Model) -> None:
    """Given the calibration set a rate is Beta(k, n + 1 − k), and 10,000 images add as much again.

    Within a class both have some 1,000 images; 4 standard errors of their sum.
    """
    manifest, test = model.manifest, model.manifest.results["test"]
    sets, rates = manifest.prediction_sets, test["class_flag_rate"]["class"]["0.01"]
    assert sets is not None
    error = math.sqrt(2 * sets.coverage * (1 - sets.coverage) / sets.calibration_size)
    assert abs(test["prediction_sets"]["coverage"] - sets.coverage) < 4 * error
    assert 1 <= test["prediction_sets"]["mean_size"] < 1.2
    within = model.bundle.calibration.class_tests["fused"].tests
    for label, rate in rates.items():
        assert abs(rate - 0.01) < 4 * math.sqrt(2 * 0.01 * 0.99 / within[int(label)].size)
    strict = manifest.policies["strict"]
    assert 0 < model.bundle.calibration.level(strict) < strict.alpha


def test_accepts_a_digit_and_abstains_on_a_letter(model: Model, settings: Settings) -> None:
    answer = answer_files(model, settings, [SAMPLES / "seven.png", SAMPLES / "letter.png"])
    digit, letter = answer["results"]
    assert (digit["decision"], digit["label"]) == ("accept", "7")
    assert digit["prediction_set"] == ["7"]
    assert letter["decision"] == "abstain"
    assert "ood" in letter["reasons"]
    assert digit["members_used"] == letter["members_used"] == 2
    assert answer["members"] == {
        "mode": "confident",
        "available": 32,
        "differing_rate": 0.001,
        "confidence": 0.9975,
    }
    assert answer["certificate"] is not None


def test_proved_that_few_members_decide_as_all_do(model: Model) -> None:
    """Clopper-Pearson, from the counts in the manifest."""
    manifest = model.manifest
    agreement = manifest.agreements["default"]
    differing, size = agreement.differing, agreement.calibration_size
    assert agreement.confidence >= 0.99
    bound = clopper_pearson_upper(differing, size, agreement.confidence)
    assert agreement.bound == pytest.approx(bound)
    assert agreement.bound <= agreement.rate == 0.001
    measured = manifest.results["test"]["policies"]["default"]["members"]
    assert 2 <= agreement.mean_members < 6
    assert 2 <= measured < 6


def test_every_mode_decides_alike_on_golden_images_and_noise(model: Model) -> None:
    """The noise is flagged: it leaves after the first group, but not where all are asked."""
    noise = np.random.default_rng(0).normal(size=(4, 1, 28, 28)).astype(np.float32)
    golden = prepare(model.bundle.golden.images, model.manifest.input)[0]
    images = np.concatenate([golden, noise])
    decided, asked = {}, {}
    for mode in ("all", "exact", "confident"):
        options = choose_options(model, "default", members=mode)
        cases = [Case(Prepared(image[None], {}), options.rule) for image in images]
        model.stepper.run(cases)
        judged = [case.judgement for case in cases]
        asked[mode] = [len(case.known.logits) for case in cases]
        decided[mode] = [
            (each.p_value, not each.reasons, "ood" in each.reasons or each.ranking[0])
            for each in judged
        ]
    assert decided["all"] == decided["exact"] == decided["confident"]
    assert set(asked["all"]) == {32}
    assert set(asked["exact"][: -len(noise)]) <= {2, 24, 28, 32}
    assert asked["exact"][-len(noise) :] == asked["confident"][-len(noise) :] == [2] * len(noise)
    assert sum(asked["confident"]) < sum(asked["exact"]) / 3


def test_calibration_scores_differ_from_image_to_image(model: Model) -> None:
    """No detector is blind: a cold or collapsed ensemble would give a constant."""
    for test in model.bundle.calibration.tests.values():
        assert len(np.unique(test.scores)) > 0.99 * test.size
