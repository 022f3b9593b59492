from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from models import bundle as bundles
from models.preprocessing import prepare
from models.uncertainty import Array, summarise
from training import reference
from training.data import DataError, Dataset, from_arrays, load
from training.data.sources import SOURCES

PRETRAINED = Path(__file__).parents[2] / "models" / "pretrained" / "mnist"
CSV = "hmc_cifar10/probs.csv"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[Dataset, Array]:
    """Forty images of three classes, and a reference whose figures are the ones asked for."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 3, 40)
    probabilities = generator.dirichlet(np.ones(3) / 2, 40) / 2 + np.eye(3)[labels] / 2
    images = np.zeros((40, 4, 4, 3), np.uint8)
    part = from_arrays(images, labels, ("a", "b", "c"), name="small")
    figures = reference.score(probabilities, part)
    monkeypatch.setattr(reference, "ACCURACY", round(figures["accuracy"], 4))
    monkeypatch.setattr(reference, "NLL", round(figures["nll"], 4))
    return part, probabilities


def order(size: int) -> list[int]:
    return sorted(range(size), key=lambda i: hashlib.md5(f"test{i}".encode()).digest())


def place(folder: Path, **arrays: Array) -> Path:
    file = folder / "hmc_cifar10" / "probs.npz"
    file.parent.mkdir(exist_ok=True)
    np.savez(file, allow_pickle=False, **arrays)
    return file


def test_the_archive_is_read_in_canonical_order(
    small: tuple[Dataset, Array], tmp_path: Path
) -> None:
    part, probabilities = small
    place(tmp_path, probs=probabilities)
    np.testing.assert_array_equal(reference.read_reference(tmp_path, part), probabilities)


def test_the_published_file_is_put_in_order(
    small: tuple[Dataset, Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, probabilities = small
    file = tmp_path / CSV
    file.parent.mkdir()
    np.savetxt(file, probabilities[order(40)])
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(SOURCES, CSV, dataclasses.replace(SOURCES[CSV], digest=digest))
    np.testing.assert_allclose(reference.read_reference(tmp_path, part), probabilities, rtol=1e-12)


def test_published_order_begins_as_its_authors_have_it() -> None:
    places = reference.reorder(np.arange(10_000.0)[:, None]).ravel()
    assert places[[9933, 5669, 163, 6686]].tolist() == [0, 1, 2, 3]


def test_another_file_is_refused(small: tuple[Dataset, Array], tmp_path: Path) -> None:
    part, probabilities = small
    place(tmp_path, probs=probabilities[order(40)])
    with pytest.raises(DataError, match="scores accuracy"):
        reference.read_reference(tmp_path, part)
    place(tmp_path, probs=probabilities[:20])
    with pytest.raises(DataError, match=r"shape \(20, 3\)"):
        reference.read_reference(tmp_path, part)
    place(tmp_path, other=probabilities)
    with pytest.raises(DataError, match="is not the reference"):
        reference.read_reference(tmp_path, part)


def test_a_bundle_of_other_classes_is_refused() -> None:
    bundle = bundles.load(PRETRAINED)
    with pytest.raises(reference.ComparisonError, match=r"airplane, truck .* this bundle has 0, 1"):
        reference.check(bundle, ("airplane", "truck"))
    reference.check(bundle, tuple("0123456789"))


def test_the_predictive_is_that_of_the_served_ensemble() -> None:
    bundle = bundles.load(PRETRAINED)
    prepared, _ = prepare(bundle.golden.images, bundle.manifest.input)
    ours = reference.predictive(bundle.path / bundles.GRAPH, prepared, threads=1)
    expected = summarise(bundle.golden.logits).probabilities
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_the_real_reference_scores_what_it_should() -> None:
    directory = os.environ.get("GATE_DATA_DIR")
    if not directory:
        pytest.skip("needs the full data sets: set GATE_DATA_DIR")
    part = load("cifar10", "test", Path(directory))
    probabilities = reference.read_reference(Path(directory), part)
    figures = reference.score(probabilities, part)
    assert figures["ece"] == pytest.approx(0.05217, abs=1e-4)
    assert probabilities.max(axis=1).mean() == pytest.approx(0.86241, abs=1e-5)
