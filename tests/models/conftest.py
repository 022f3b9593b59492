"""A bundle of fake files whose manifest, calibration scores and golden answers are valid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.density import ClassGaussians, ClassSubspaces
from models.detectors import DETECTORS, Detectors
from models.features import FeatureNeighbours, FeatureSubspaces, RelativeMahalanobis
from models.fusion import Surprise
from models.manifest import (
    CalibrationSpec,
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

CALIBRATION_SIZE = 5
FUSED = ("predictive_entropy", "shape", "strokes")


@pytest.fixture
def manifest() -> Manifest:
    """Two groups of two members and three labels, on RGB images of 4 × 6 pixels."""
    return Manifest(
        name="fake",
        version="1",
        labels=("a", "b", "c"),
        input=InputSpec(
            channels=3, height=4, width=6, polarity="as-is", mean=(0.5,) * 3, std=(0.25,) * 3
        ),
        network=NetworkSpec(
            name="mlp", channels=(), kernel=5, hidden=(2,), activation="relu", num_weights=155
        ),
        members=Members(count=4, group=2, chains=(0, 1, 0, 1), samples=(0, 0, 1, 1)),
        posterior=PosteriorSpec(num_data=100, temperature=1.0, prior_std={"dense1.weight": 0.1}),
        sampler={"name": "sgld", "seed": 1},
        data=(DataSource(name="fake", part="train", role="train", size=100, sha256="0" * 64),),
        verdict=Verdict(checks={"temperature": Check(value=1.0, low=0.9, high=1.1)}),
        calibration=CalibrationSpec(
            size=CALIBRATION_SIZE, seed=1, score="predictive_entropy", fused=FUSED
        ),
        policies={"default": Policy(alpha=0.01, min_probability=0.9)},
        results={"test": {"accuracy": 0.9}},
        libraries={"numpy": np.__version__},
        files={},
    )


@pytest.fixture
def detectors() -> Detectors:
    """Three classes of descriptions that mean nothing."""
    randomness = np.random.default_rng(0)
    classes = np.arange(60) % 3
    shape = ClassGaussians.fit(randomness.normal(size=(60, 20)), classes, 3)
    strokes = ClassSubspaces.fit(randomness.normal(size=(60, 196)), classes, 3, rank=2)
    surprises = {name: Surprise.fit(randomness.exponential(size=100)) for name in FUSED}
    features = randomness.normal(size=(60, 2, 5)).astype(np.float32)
    return Detectors(
        shape,
        strokes,
        FeatureSubspaces.fit(features, classes, 3, rank=2),
        FeatureNeighbours.fit(features, classes, 3),
        RelativeMahalanobis.fit(features, classes, 3),
        surprises,
    )


@pytest.fixture
def source(tmp_path: Path, detectors: Detectors) -> Path:
    """What training hands to `publish`."""
    folder = tmp_path / "source"
    (folder / "report").mkdir(parents=True)
    (folder / "ensemble.onnx").write_bytes(b"graph")
    (folder / "group.onnx").write_bytes(b"part of it")
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "report" / "report.json").write_text("{}")
    (folder / "MODEL_CARD.md").write_text("card")
    scores = np.linspace(0, 1, CALIBRATION_SIZE)
    arrays = {**detectors.arrays(), **dict.fromkeys(DETECTORS, scores)}
    np.savez(folder / "calibration.npz", allow_pickle=False, **arrays)
    images = np.arange(7 * 4 * 6 * 3, dtype=np.uint8).reshape(7, 4, 6, 3)
    logits = np.linspace(-1, 1, 7 * 4 * 3, dtype=np.float32).reshape(7, 4, 3)
    answers = {"logits": logits, "features": np.ones((7, 2, 5), np.float32)}
    np.savez(folder / "golden.npz", allow_pickle=False, images=images, **answers)
    return folder
