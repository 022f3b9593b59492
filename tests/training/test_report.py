"""The report and the card, from figures that are made up."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.manifest import (
    CalibrationSpec,
    CertificateSpec,
    Check,
    DataSource,
    Manifest,
    Members,
    NetworkSpec,
    PosteriorSpec,
    Verdict,
)
from models.policy import Policy
from models.preprocessing import InputSpec
from models.uncertainty import softmax
from training.card import model_card
from training.diagnostics import mixing
from training.members import curves, select
from training.relaxation import relaxation
from training.report import write

LAYERS = ("dense1", "dense2")
RANDOM = np.random.default_rng(0)


def manifest(temperatures: dict[str, float]) -> Manifest:
    """Four members and three labels, and a check of each layer's temperature."""
    test = {"accuracy": 0.9, "member_accuracy": 0.8, "nll": 0.3, "ece": 0.02, "brier": 0.1}
    test |= {"aurc": 0.02, "augrc": 0.01, "coverage_at_0.001": 0.25, "coverage_at_0.01": 0.5}
    rates = {"mutual_information": {"0.05": 0.04, "0.01": 0.01, "0.001": 0.0}}
    gates = {"default": {"accepted": 0.9, "error_among_accepted": 0.01, "members": 4.0}}
    checks = {
        f"temperature.{name}": Check(value=value, low=0.8, high=1.2)
        for name, value in temperatures.items()
    }
    return Manifest(
        name="fake",
        version="1",
        labels=("a", "b", "c"),
        input=InputSpec(channels=1, height=4, width=4, polarity="as-is", mean=(0.5,), std=(0.25,)),
        network=NetworkSpec(
            name="mlp", channels=(), kernel=5, hidden=(2,), activation="relu", num_weights=43
        ),
        members=Members(count=4, group=2, chains=(0, 1, 0, 1), samples=(0, 0, 1, 1)),
        posterior=PosteriorSpec(num_data=100, temperature=1.0, prior_std={"dense1.weight": 0.1}),
        sampler={"name": "sgld", "seed": 1, "chains": 2},
        data=tuple(
            DataSource(name="fake", part=part, role=part, size=20, sha256="0" * 64)
            for part in ("train", "test")
        ),
        verdict=Verdict(checks={"ess.nll": Check(value=60, low=50), **checks}),
        calibration=CalibrationSpec(
            size=20, seed=1, score="mutual_information", fused=("mutual_information", "shape")
        ),
        policies={"default": Policy(alpha=0.01, min_probability=0.9)},
        results={"test": {**test, "flag_rate": rates, "policies": gates}, "ood": {}, "shift": {}},
        libraries={},
        files={},
    )


def plain(layers: dict[str, float]) -> dict[str, Any]:
    """Figures that every run has."""
    return {
        "asked_temperature": 1.0,
        "temperature": {"value": 1.0, "standard_error": 0.01},
        "layers": {name: {"value": v, "standard_error": 0.01} for name, v in layers.items()},
        "observables": {"nll": {"mean": 0.5, "chain_means": [0.4, 0.6]}},
    }


def full(layers: dict[str, float]) -> dict[str, Any]:
    """With everything that is optional."""
    chains, samples, images = 2, 6, 30
    probabilities = softmax(RANDOM.normal(size=(chains, samples, images, 3)))
    observed = mixing(RANDOM.normal(size=(chains, samples, 9)))
    relaxed = relaxation(RANDOM.normal(size=(chains, 24)), 4, 8)
    return {
        **plain(layers),
        "gradient_noise_ratio": {"dense1": 0.3, "dense2": 0.02},
        "coordinates": {"rhat": observed.rhat.tolist(), "ess": observed.ess.tolist()},
        "drift": {"nll": -1.234, "entropy": 0.5},
        "relaxation": {
            "epochs_per_point": 0.5,
            "curves": {
                "nll": {**asdict(relaxed), "burn_in": 9},
                "entropy": {**asdict(relaxed), "burn_in": None},
            },
        },
        "members": curves(probabilities, np.zeros(images, np.int64), select(4, probabilities, 2)),
        "prior_predictive": {
            "draws": 8,
            "images": 30,
            "max_probability": 0.5,
            "entropy": 0.25,
            "mutual_information": 0.75,
            "one_class": 0.125,
            "logit_std": 1.5,
        },
    }


PLACED = {
    "test, right": np.stack([np.linspace(0, 0.1, 20), np.linspace(0, 1, 20), np.zeros(20)]),
    "strange": np.stack([np.linspace(0, 1, 20), np.linspace(0, 9, 20), np.full(20, 2.0)]),
}
TRACES = np.linspace(0.4, 0.6, 20).reshape(2, 10)
NORMAL = dict.fromkeys(LAYERS, 1.0)


def test_everything_is_drawn_and_told(tmp_path: Path) -> None:
    diagnostics = full(NORMAL)
    write(tmp_path, manifest(NORMAL), diagnostics, TRACES, PLACED)
    drawn = {file.stem for file in (tmp_path / "report").glob("*.png")}
    assert drawn == {
        "traces",
        "temperatures",
        "scores",
        "apart",
        "members",
        "relaxation",
        "mixing",
    }
    for name in drawn:
        with Image.open(tmp_path / "report" / f"{name}.png") as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 10
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["diagnostics"] == json.loads(json.dumps(diagnostics))
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "9 random predictive coordinates" in card
    assert "nll -1.2, entropy +0.5." in card
    assert "nll 4.5, entropy not seen." in card
    assert "4 of 12 samples are served (greedy selection)" in card
    assert f"| served | {diagnostics['members']['served']['total_variation'][-1]:.5f} |" in card
    assert "Disagreement between them is 75 %" in card
    assert "12 % of them give over 90 %" in card


@pytest.mark.parametrize("missing", ["absent", "empty"])
def test_what_was_not_measured_is_left_out(tmp_path: Path, missing: str) -> None:
    diagnostics = plain(NORMAL)
    if missing == "empty":
        diagnostics |= dict.fromkeys(full(NORMAL).keys() - diagnostics.keys())
    write(tmp_path, manifest(NORMAL), diagnostics, TRACES, PLACED)
    drawn = {file.stem for file in (tmp_path / "report").glob("*.png")}
    assert drawn == {"traces", "temperatures", "scores", "apart"}
    card = (tmp_path / "MODEL_CARD.md").read_text()
    for heading in ("## Members", "## Prior", "coordinates", "Second half", "until relaxed"):
        assert heading not in card


def test_same_figures_give_the_same_files(tmp_path: Path) -> None:
    everything = full(NORMAL)
    diagnostics = {**plain(NORMAL), "members": everything["members"]}
    fixed = manifest(NORMAL)
    for name in ("one", "two"):
        write(tmp_path / name, fixed, diagnostics, TRACES, PLACED)
    for file in (tmp_path / "one").rglob("*.*"):
        twin = tmp_path / "two" / file.relative_to(tmp_path / "one")
        assert file.read_bytes() == twin.read_bytes()


@pytest.mark.parametrize(
    ("layers", "sentences"),
    [
        (
            {"dense1": 1.4, "dense2": 1.0},
            [
                "Layer dense1 is too hot: T = 1.4, 40 % above the 1 asked. Likely reason: the "
                "noise of its minibatch gradients is 30 % of the injected noise"
            ],
        ),
        (
            {"dense1": 1.0, "dense2": 1.5},
            [
                "Layer dense2 is too hot: T = 1.5, 50 % above the 1 asked. Not for minibatch noise "
                "alone: the noise of its minibatch gradients is 2 % of the injected noise."
            ],
        ),
        (
            {"dense1": 0.7, "dense2": 1.3},
            [
                "Layer dense1 is too cold: T = 0.7, 30 % below the 1 asked. Likely reason: it has "
                "not yet forgotten its start",
                "Layer dense2 is too hot",
            ],
        ),
    ],
)
def test_card_names_the_layer_that_failed(layers: dict[str, float], sentences: list[str]) -> None:
    card = model_card(manifest(layers), full(layers))
    assert "## Sampler: UNVERIFIED" in card
    assert card.count("Layer ") == len(sentences)
    for sentence in sentences:
        assert sentence in card
    for name, value in layers.items():
        outcome = "0.8 to 1.2" + ("" if 0.8 <= value <= 1.2 else ": failed")
        assert f"| temperature.{name} | {value:g} | {outcome} |" in card


def test_card_tells_what_is_certified() -> None:
    certificate = CertificateSpec(
        target_risk=0.25,
        confidence=0.999,
        calibration_size=20,
        alpha=0.01,
        threshold=0.9,
        accepted=16,
        errors=3,
        risk_bound=0.2,
        coverage_bound=0.61,
    )
    plain_manifest = manifest(NORMAL)
    certified = plain_manifest.model_copy(update={"certificates": {"default": certificate}})
    card = model_card(certified, plain(NORMAL))
    row = "| default | at most 25.00 % | at least 61.00 % | 99.9 % | 20 | 16 | 3 |"
    assert "## Certificates" in card
    assert row in card
    assert "## Certificates" not in model_card(plain_manifest, plain(NORMAL))


def test_card_tells_what_the_flag_and_the_sets_promise() -> None:
    plain_manifest = manifest(NORMAL)
    rates = {"0.01": {"0": 0.02, "1": 0.005, "2": None}}
    measured = {"coverage": 0.971, "mean_size": 1.25}
    test = plain_manifest.results["test"] | {
        "class_flag_rate": {"marginal": rates, "class": {"0.01": dict.fromkeys("012", 0.01)}},
        "prediction_sets": measured,
        "policies": {
            name: {"accepted": 0.9, "error_among_accepted": 0.01, "members": 4.0}
            for name in ("default", "sure", "each")
        },
    }
    levels = {"alpha": 0.05, "min_probability": 0.9}
    content = plain_manifest.model_dump() | {
        "results": {"test": test, "ood": {}, "shift": {}},
        "policies": {
            "default": levels,
            "sure": {**levels, "alpha_confidence": 0.999},
            "each": {**levels, "conditional_on": "class"},
        },
        "prediction_sets": {
            "score": "aps",
            "coverage": 0.95,
            "calibration_size": 20,
            "threshold": 0.5,
        },
    }
    card = model_card(Manifest.model_validate(content), plain(NORMAL))
    for line in (
        "| a | 2.00 % | 1.00 % |",
        "| c | none | 1.00 % |",
        "A set (aps, 20 calibration images) holds the true label",
        "with probability at least 95 %",
        "| test | 97.10 % | 1.250 |",
        "| default | mutual_information | 0.05 | 0.9 |",
        "| sure | mutual_information | 0.05, with confidence 99.9 % | 0.9 |",
        "| each | mutual_information | 0.05, in each class | 0.9 |",
    ):
        assert line in card
    assert "## Prediction sets" not in model_card(plain_manifest, plain(NORMAL))


def test_card_tells_what_it_says_of_unfamiliar_images() -> None:
    plain_manifest = manifest(NORMAL)
    figures = {
        "separation": {"energy": {"auroc": 0.9512, "fpr95": 0.2, "fpr99": 0.4}},
        "flag_rate": {"mutual_information": {"0.01": 0.75}},
        "policies": {"default": {"accepted": 0.125, "error_among_accepted": None, "members": 4.0}},
        "entropy_rhat": 1.234,
    }
    results = plain_manifest.results | {"ood": {"letters": figures}}
    card = model_card(plain_manifest.model_copy(update={"results": results}), plain(NORMAL))
    assert "| letters | energy | 0.9512 | 20.00 % | 40.00 % |" in card
    assert "| letters | 75.00 % | 12.50 % | 1.234 |" in card
    assert "## On unfamiliar images" not in model_card(plain_manifest, plain(NORMAL))


def test_card_tells_ambiguous_images_from_others() -> None:
    plain_manifest = manifest(NORMAL)
    figures = {
        "images": 1200,
        "both_labels": 0.975,
        "two_most_likely": 0.95,
        "auroc_over_test": {"expected_entropy": 0.91, "fused": 0.925},
        "auroc_over_ambiguous": {"letters": {"expected_entropy": 0.5, "fused": 1.0}},
    }
    results = plain_manifest.results | {"ambiguous": figures}
    card = model_card(plain_manifest.model_copy(update={"results": results}), plain(NORMAL))
    for line in (
        "1,200 images halfway between test images of two classes",
        "The two labels carry 97.50 % of the probability, and are the two most probable on 95.00 %",
        "| | expected entropy | fused |\n|---|---|---|\n",
        "| ambiguous over test | 0.910 | 0.925 |",
        "| letters over ambiguous | 0.500 | 1.000 |",
    ):
        assert line in card
    assert "## On ambiguous images" not in model_card(plain_manifest, plain(NORMAL))


def test_card_tells_why_these_scores_are_fused() -> None:
    plain_manifest = manifest(NORMAL)
    detection = {
        "misses": {"energy + shape": 0.4, "mutual_information + shape": 0.2, "energy + s": 0.25},
        "alone": {"shape": 0.5, "energy": 0.3},
        "added": {},
    }
    results = plain_manifest.results | {"detection": detection}
    card = model_card(plain_manifest.model_copy(update={"results": results}), plain(NORMAL))
    assert "`fused` is made of mutual_information, shape: of all choices" in card
    assert "training images, 20.00 % (mean" in card
    assert "the next best choice 25.00 %. Alone: energy 30.00 %, shape 50.00 %." in card


def test_card_tells_selective_risk() -> None:
    card = model_card(manifest(NORMAL), plain(NORMAL))
    assert "| AURC, AUGRC (× 1000) | 20.000, 10.000 | |" in card
    assert "| coverage at 0.1 %, 1 % error | 25.00 %, 50.00 % | |" in card


def test_card_without_noise_names_the_layer_all_the_same() -> None:
    layers = {"dense1": 1.4, "dense2": 1.0}
    card = model_card(manifest(layers), plain(layers))
    assert "40 % above the 1 asked. Its gradient-noise ratio was not measured." in card


def test_card_of_plain_optimisation() -> None:
    """At T = 0 no layer is so many per cent too hot."""
    diagnostics = plain({"dense1": 0.3, "dense2": 0.0}) | {"asked_temperature": 0.0}
    assert "Layer " not in model_card(manifest({"dense1": 0.3, "dense2": 0.0}), diagnostics)
