"""The shipped model, on real digits and letters, through the code that serves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models import bundle as bundles
from service.offline import answer_files
from service.repository import Model, open_model
from service.settings import EMBEDDED_BUNDLE, Settings

SAMPLES = Path(__file__).parents[2] / "docs" / "samples"
MAX_BYTES = 12_000_000


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
    assert manifest.members.count == 32
    assert len(set(manifest.members.chains)) >= 4
    assert sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) <= MAX_BYTES


def test_reports_what_the_project_asks_of_it(model: Model) -> None:
    test = model.manifest.results["test"]
    assert test["accuracy"] >= 0.992
    assert test["nll"] <= 0.030
    assert 0.007 <= test["flag_rate"][model.manifest.calibration.score]["0.01"] <= 0.013


def test_accepts_a_digit_and_abstains_on_a_letter(model: Model, settings: Settings) -> None:
    answer = answer_files(model, settings, [SAMPLES / "seven.png", SAMPLES / "letter.png"])
    digit, letter = answer["results"]
    assert (digit["decision"], digit["label"]) == ("accept", "7")
    assert letter["decision"] == "abstain"
    assert "ood" in letter["reasons"]


def test_calibration_scores_differ_from_image_to_image(model: Model) -> None:
    """No detector is blind: a cold or collapsed ensemble would give a constant."""
    for test in model.bundle.tests.values():
        assert len(np.unique(test.scores)) > 0.99 * test.size
