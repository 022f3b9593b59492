from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import ambiguity
from models.bundle import load
from training.apart import DECISIONS
from training.data import Dataset, from_arrays

BUNDLE = Path(__file__).parents[2] / "models" / "pretrained" / "mnist"


def test_sheet_shows_images_in_their_order() -> None:
    images = np.arange(128, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(3, 2)
    picture = np.asarray(ambiguity.sheet(images))
    assert picture.shape == (2 * ambiguity.ROWS, 3 * ambiguity.COLUMNS)
    tiles = picture[::2, ::3].ravel()
    assert tiles.tolist() == np.linspace(0, 127, 64).astype(int).tolist()
    colours = ambiguity.sheet(images.repeat(3, axis=3))
    assert colours.mode == "RGB"


def test_figures_of_the_shipped_bundle_on_its_golden_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its golden images stand in for its test set, upside down for the unfamiliar ones."""
    golden = load(BUNDLE).golden
    labels = golden.logits.mean(axis=1).argmax(axis=1)
    classes = tuple("0123456789")

    def stand_in(name: str, part: str, directory: Path) -> Dataset:
        images = golden.images if name == "mnist" else np.flip(golden.images, axis=1)
        return from_arrays(images, labels, classes, name=name)

    monkeypatch.setattr("benchmarks.ambiguity.data.load", stand_in)
    ambiguity.main(tmp_path, BUNDLE, tmp_path)
    report = json.loads((tmp_path / "ambiguity.json").read_text())
    assert report["images"] == 1
    foreign = ["notmnist", "fashion_mnist", "omniglot"]
    unfamiliar = [*foreign, *(f"{name}-20" for name in foreign)]
    assert list(report["auroc_over_ambiguous"]) == unfamiliar
    assert set(report["decisions"]) == {"test, right", "ambiguous", *unfamiliar}
    for row in report["decisions"].values():
        assert list(row) == list(DECISIONS)
        assert sum(row.values()) == pytest.approx(1)
    assert report["decisions"]["test, right"]["accept"] > report["decisions"]["notmnist"]["accept"]
    printed = capsys.readouterr().out
    row = report["auroc_over_test"]
    assert f"they have {report['set_size']:.2f} labels on average" in printed
    assert f"| ambiguous over test | {row['expected_entropy']:.3f} |" in printed
    for name in ("apart.png", "ambiguous.png"):
        with Image.open(tmp_path / name) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 10
