from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from training.data import DataError, load


def test_parts_have_their_sizes_and_make_up_the_set(tmp_path: Path) -> None:
    train = load("digits", "train", tmp_path, may_download=False)
    test = load("digits", "test", tmp_path, may_download=False)
    assert train.images.shape == (1297, 8, 8, 1)
    assert test.images.shape == (500, 8, 8, 1)
    bunch = load_digits()
    scaled = [[round(value * 255 / 16) for value in image.ravel()] for image in bunch.images]
    together = np.concatenate([train.images, test.images]).reshape(-1, 64)
    assert sorted(together.tolist()) == sorted(scaled)
    counts = np.bincount(test.labels)
    assert np.abs(counts - np.bincount(bunch.target) * 500 / 1797).max() <= 1


def test_parts_are_the_same_everywhere() -> None:
    assert load("digits", "train").sha256 == (
        "57e6c68bb0da04481384ac9bdca791903c1ead3909bf0873bc49517a64315475"
    )
    assert load("digits", "test").sha256 == (
        "cfab643e480eb3a3f5b1fbb74f762a77e2c2116ab9239aed3227a73a9e34125f"
    )


def test_without_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="install scikit-learn"):
        load("digits", "test")
