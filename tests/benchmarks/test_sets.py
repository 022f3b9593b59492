from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import foreign
from benchmarks.sets import each, grouped_sets
from benchmarks.shift import VIEWS, shifted_sets
from models.preprocessing import LUMA
from training import data
from training.data import Dataset, from_arrays
from training.recipe import change, load
from training.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    recipe = change(load("digits"), {"data": {"ood": ("digits",), "shift": ("digits",)}})
    return Run.create(recipe, tmp_path / "run", tmp_path)


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Ten images of 32 × 32 in the place of CIFAR-10."""
    print("seed 9")
    images = np.random.default_rng(9).integers(0, 256, (10, 32, 32, 3), np.uint8)
    dataset = from_arrays(images, np.zeros(10, np.int64), ("airplane",), name="cifar10")
    load_named = data.load
    monkeypatch.setattr(
        data,
        "load",
        lambda name, *rest: dataset if name == "cifar10" else load_named(name, *rest),
    )
    return dataset


def test_groups_of_the_recipe(run: Run, colours: Dataset) -> None:
    sets = grouped_sets(run)
    assert list(sets["familiar"]) == ["calibration", "test"]
    assert list(sets["foreign"]) == ["digits", "digits-20", "cifar10-grey", "noise"]
    assert list(sets["shift"]) == [*VIEWS, "digits"]
    sizes = each(len, sets)
    assert sizes["familiar"] == {"calibration": 297, "test": 500}
    assert sizes["foreign"]["noise"] == 2000


def test_noise_has_the_size_that_the_network_takes(run: Run, colours: Dataset) -> None:
    sets = foreign.foreign_sets(run)
    assert sets["noise"].images.shape == (2000, 8, 8, 1)
    assert sets["digits-20"].images.shape == (500, 28, 28, 1)


def test_grey_is_the_luma_of_the_middle(run: Run, colours: Dataset) -> None:
    grey = foreign.foreign_sets(run)["cifar10-grey"].images
    assert grey.shape == (10, 28, 28, 1)
    assert grey[3, 0, 27, 0] == np.rint(colours.images[3, 2, 29] @ LUMA)


def test_what_is_familiar_is_not_foreign(run: Run, colours: Dataset) -> None:
    """A recipe of CIFAR-10 gets none of it in grey."""
    objects = run.recipe.data.model_copy(update={"dataset": "cifar10", "ood": ()})
    other = replace(run, recipe=run.recipe.model_copy(update={"data": objects}))
    other.__dict__["problem"] = run.problem
    assert list(foreign.foreign_sets(other)) == ["noise"]


def test_views_are_of_the_same_random_test_images(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.shift.SHIFTED", 60)
    sets, test = shifted_sets(run), run.problem.test
    for name in VIEWS:
        assert sets[name].images.shape == (60, 8, 8, 1)
        assert np.array_equal(sets[name].labels, sets["0°"].labels)
    places = [
        int(np.flatnonzero((test.images == image).all(axis=(1, 2, 3)))[0])
        for image in sets["0°"].images
    ]
    assert len(set(places)) == 60
    assert max(places) > 300
    assert np.array_equal(test.labels[places], sets["0°"].labels)
    assert np.array_equal(sets["90°"].images, np.rot90(sets["0°"].images, axes=(1, 2)))
    changed = [np.abs(sets[name].images.astype(int) - sets["0°"].images).mean() for name in VIEWS]
    assert changed[0] == 0
    for start in (7, 10, 13):
        assert (np.diff([0, *changed[start : start + 3]]) > 0).all()
