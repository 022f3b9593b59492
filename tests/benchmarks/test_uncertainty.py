from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import sets
from benchmarks.posterior import shortened
from benchmarks.shift import VIEWS
from benchmarks.trivial import Trivial
from benchmarks.uncertainty import METHODS, compare
from benchmarks.uncertainty_figures import separations
from models.detectors import DETECTORS, ENSEMBLE
from training.recipe import change, load
from training.run import Run


def test_separations_by_hand() -> None:
    """Calibration scores 0 … 1999: half of them decide, so thresholds lie near 1980 and 1998."""
    scores = {
        "calibration": np.arange(2000.0),
        "test": np.arange(0.5, 2000),
        "far": np.full(10, 5000.0),
        "near": np.full(10, 1000.0),
    }
    figures = separations(scores)
    assert figures["far"] == {"auroc": 1.0, "fpr95": 0.0, "fpr99": 0.0, "leak": 0.0}
    assert figures["near"] == {"auroc": 0.5, "fpr95": 1.0, "fpr99": 1.0, "leak": 1.0}
    assert figures["test"]["flagged"] == pytest.approx(0.01, abs=0.002)
    assert 0 < figures["test"]["spread"] < 0.005


def test_trivial_detectors() -> None:
    randomness = np.random.default_rng(0)
    train = np.zeros((300, 28, 28), np.float32)
    train[:, 8:20, 8:20] = randomness.random((300, 12, 12))
    detector = Trivial.fit(train)
    framed, wide = train[:5], np.roll(train[:5], 8, axis=2)
    for name, score in detector.scores.items():
        assert score(framed).shape == (5,)
        if name != "mean intensity":
            assert score(wide).min() > score(framed).max()
    assert detector.scores["pixel 1-NN"](framed) == pytest.approx(0, abs=1e-2)
    assert detector.scores["mass outside the box"](framed) == pytest.approx(0, abs=1e-4)
    assert (detector.scores["mean intensity"](np.ones((1, 28, 28), np.float32)) > 0.5).all()


def test_every_row_of_a_seed_once_and_never_twice(
    in_process: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the 8 × 8 digits, whose own test images also stand in for the other sets."""
    shifted = {"data": {"shift": ("digits",)}}
    base = change(load("digits"), {"members": 4, "sampler": {"samples": 2, "trace": 4}, **shifted})
    run = Run.create(shortened(base, 2, 16), tmp_path / "seed-1", tmp_path)
    monkeypatch.setattr(sets, "foreign_sets", lambda run: {"strangers": run.problem.test})
    text = compare([run.path], tmp_path, tmp_path, 1)
    report = json.loads((tmp_path / "uncertainty.json").read_text())
    assert (tmp_path / "uncertainty.md").read_text() == text
    assert report["seeds"] == ["1"]
    _check_scores(report, text)
    _check_methods(report, text)
    _check_gate(report, text)
    said = len(in_process)
    assert compare([run.path], tmp_path, tmp_path, 1) == text
    assert len(in_process) == said


def _check_scores(report: dict[str, Any], text: str) -> None:
    for name in ENSEMBLE:
        assert f"Langevin, T = 1, M = 4: {name}" in report["rows"]
    for name in DETECTORS:
        assert f"gate: {name}" in report["rows"]
    for name in ("variance", "Mahalanobis", "density", "1-NN"):
        assert f"features: {name}" in report["rows"]
    for row, (figures,) in report["rows"].items():
        assert set(figures) == {"strangers", "test"}
        assert figures["strangers"]["auroc"] == pytest.approx(0.5)
        assert f"| {row} |" in text


def _check_methods(report: dict[str, Any], text: str) -> None:
    """The digits are no stranger to themselves: no error costs more than a stranger's answer."""
    assert len(report["methods"]) == len(METHODS) + 1
    for name, (figures,) in report["methods"].items():
        test, shift, scod = (figures[key] for key in ("test", "shift", "scod"))
        assert list(shift) == [*VIEWS, "digits"]
        assert shift["digits"] == pytest.approx(test)
        assert shift["0°"] == pytest.approx(test)
        assert shift["90°"]["nll"] > test["nll"]
        assert shift["noise 0.4"]["accuracy"] < test["accuracy"]
        assert 0 <= test["coverage_at_0.001"] <= test["coverage_at_0.01"] <= 1
        assert test["augrc"] <= test["aurc"]
        assert set(scod) == {"strangers"}
        assert scod["strangers"]["area"] > 0.5
        assert text.count(f"| {name} |") == 7
        assert text.count(f"| {name}: max probability |") >= 2


def _check_gate(report: dict[str, Any], text: str) -> None:
    """By the 297 calibration images; 500 test images, each decision apart from the others."""
    (gate,) = report["gate"]
    assert gate["policy"]["alpha"] == 0.01
    decisions = gate["decisions"]
    assert list(decisions) == ["test", *VIEWS, "digits", "strangers"]
    assert decisions["strangers"]["accepted"] == decisions["test"]["accepted"]
    assert decisions["strangers"]["error_among_accepted"] is None
    assert decisions["digits"] == decisions["test"] == pytest.approx(decisions["0°"])
    assert decisions["test"]["error_among_accepted"] < 0.1
    assert decisions["90°"]["accepted"] < decisions["test"]["accepted"]
    assert gate["scod"]["strangers"]["accepted"] == 0
    assert text.count("| the gate: fused and max probability |") == 2
    for name in decisions:
        assert f"| {name} |" in text
