"""A recipe of one's own, on one's own folder of images, from PNG files to a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from models import bundle as bundles
from training import data
from training.pool import run_all
from training.recipe import Recipe, change
from training.run import Run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of digits as files, 40 of each to train and 10 to test."""
    for part, count in (("train", 40), ("test", 10)):
        digits = data.load("digits", part)
        for label, name in ((0, "zero"), (1, "one"), (7, "seven")):
            target = tmp_path / "images" / part / name
            target.mkdir(parents=True)
            for index, image in enumerate(digits.images[digits.labels == label][:count]):
                Image.fromarray(image[..., 0]).save(target / f"{index:02d}.png")
    return tmp_path / "images"


def test_folder_of_images_becomes_a_bundle(folder: Path, tiny: Recipe, tmp_path: Path) -> None:
    sizes = {"dataset": None, "folder": folder, "validation": 15, "calibration": 30}
    changes = {"data": sizes, "sampler": {"batch_size": 25}, "prediction_sets": {"coverage": 0.9}}
    recipe = change(tiny, {"name": "three", **changes})
    run = Run.create(recipe, tmp_path / "run", tmp_path)
    run_all(recipe, tmp_path, run.path, 1, lambda step: None)
    run.diagnose()
    run.export()
    run.calibrate()
    run.evaluate()
    manifest = bundles.load(run.publish()).manifest
    assert manifest.labels == ("one", "seven", "zero")
    assert manifest.posterior.num_data == 75
    assert manifest.results["test"]["accuracy"] > 0.8
    assert {part.role: part.size for part in manifest.data} == {
        "train": 75,
        "validation": 15,
        "calibration": 30,
        "test": 30,
    }
