from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import uncertainty
from benchmarks.posterior import shortened
from benchmarks.trivial import Trivial
from benchmarks.uncertainty import compare, separations
from models.detectors import DETECTORS
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
    """On the 8 × 8 digits, whose own test images stand in for a foreign set."""
    base = change(load("digits"), {"members": 4, "sampler": {"samples": 2, "trace": 4}})
    run = Run.create(shortened(base, 2, 16), tmp_path / "seed-1", tmp_path)
    monkeypatch.setattr(uncertainty, "foreign_sets", lambda run: {"digits": run.problem.test})
    text = compare([run.path], tmp_path, tmp_path, 1)
    report = json.loads((tmp_path / "uncertainty.json").read_text())
    assert (tmp_path / "uncertainty.md").read_text() == text
    assert report["seeds"] == ["1"]
    for name in DETECTORS:
        assert f"Langevin, T = 1, M = 4: {name}" in report["rows"]
    for row, (figures,) in report["rows"].items():
        assert set(figures) == {"digits", "test"}
        assert figures["digits"]["auroc"] == pytest.approx(0.5)
        assert text.count(f"| {row} |") == 2
    said = len(in_process)
    compare([run.path], tmp_path, tmp_path, 1)
    assert len(in_process) == said
