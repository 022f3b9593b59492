from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.columns import Column
from benchmarks.posterior import METHODS, compare, shortened
from benchmarks.posterior_figures import equivalents
from benchmarks.posterior_tables import tables
from training.baselines.ensemble import budget
from training.recipe import RecipeError, change, load
from training.run import Run


@pytest.mark.parametrize(("chains", "epochs"), [(4, 160), (8, 160), (2, 8), (3, 100)])
def test_shortened_keeps_proportions_and_the_epochs(chains: int, epochs: int) -> None:
    recipe = load("fashion_mnist")
    short = shortened(recipe, chains, epochs)
    assert budget(short) == chains * (epochs // chains)
    assert short.sampler.chains == chains
    share = (epochs // chains) / (budget(recipe) / recipe.sampler.chains)
    for name in ("warm_start_epochs", "burn_in_epochs", "sampling_epochs"):
        assert getattr(short.sampler, name) == pytest.approx(
            share * getattr(recipe.sampler, name), abs=1.01
        )
    schedule = short.sampler.schedule.model_dump()
    assert 1 <= schedule["epochs"] <= short.sampler.warm_start_epochs + short.sampler.burn_in_epochs


@pytest.mark.parametrize(("chains", "epochs", "cycles"), [(4, 120, 9), (4, 60, 4), (2, 16, 2)])
def test_shortened_keeps_whole_cycles(chains: int, epochs: int, cycles: int) -> None:
    cyclical = {"kind": "cyclical", "initial": 0.1, "cycle_epochs": 3, "exploration": 0.5}
    recipe = change(load("mnist"), {"sampler": {"warm_start_epochs": 2, "schedule": cyclical}})
    short = shortened(recipe, chains, epochs).sampler
    assert short.schedule == recipe.sampler.schedule
    assert short.warm_start_epochs == 2
    assert short.burn_in_epochs == 3
    assert short.burn_in_epochs + short.sampling_epochs == 3 * cycles


def test_shortened_refuses_too_few_epochs_and_serves_what_there_is() -> None:
    with pytest.raises(RecipeError, match="2 epochs are too few for 1 chains"):
        shortened(load("mnist"), 1, 2)
    assert shortened(load("mnist"), 1, 40).members == load("mnist").sampler.samples


def test_cells_are_mean_and_deviation_or_missing() -> None:
    column = Column("x", lambda figures: figures["x"], 2, "> 8")
    assert column.cell([{"x": 1.0}, {"x": 2.0}]) == "1.50 ± 0.71"
    assert column.cell([{"x": 1.0}]) == column.cell([{"x": 1.0}, {"x": 1.0}]) == "1.00"
    assert column.cell([{"x": 1.0}, {"x": None}]) == "> 8"


def test_equivalents_use_the_curve_of_their_own_seed() -> None:
    def seed(nll: float, curve: list[float]) -> dict[str, Any]:
        return {"test": {"nll": nll}, "curve": curve}

    methods = {
        "ensemble-8": [seed(0.2, [0.4, 0.2]), seed(0.5, [0.6, 0.5])],
        "other": [{"test": {"nll": 0.3}}, {"test": {"nll": 0.3}}],
    }
    equivalents(methods)
    assert [figures["deep_ensemble_equivalent"] for figures in methods["ensemble-8"]] == [2, 2]
    first, second = (figures["deep_ensemble_equivalent"] for figures in methods["other"])
    assert first == pytest.approx(1.5)
    assert second is None


def test_the_whole_comparison_once_and_never_twice(
    in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the 8 × 8 digits, whose own test images also stand in for the other sets."""
    sets = {"ood": ("digits",), "shift": ("digits",)}
    base = change(
        load("digits"), {"members": 4, "data": sets, "sampler": {"samples": 2, "trace": 4}}
    )
    recipe = shortened(base, 2, 16)
    runs = [Run.create(recipe, tmp_path / "seed-1", tmp_path)]
    compare(runs, tmp_path, 1)
    assert len(in_process) == len(METHODS)
    report = json.loads((tmp_path / "posterior.json").read_text())
    text = (tmp_path / "posterior.md").read_text()
    assert text in capsys.readouterr().out
    assert text == tables(report)
    assert list(report["methods"]) == list(METHODS)
    for name, (figures,) in report["methods"].items():
        assert figures["epochs"] <= report["epochs"] == 16
        assert set(figures["ood"]) == {"digits", "digits-20"}
        assert figures["ood"]["digits"]["predictive_entropy"]["auroc"] == pytest.approx(0.5)
        assert figures["ood"]["digits-20"]["predictive_entropy"]["auroc"] != pytest.approx(0.5)
        assert figures["shift"]["digits"]["nll"] == pytest.approx(figures["test"]["nll"])
        assert figures["rotation"]["90"]["nll"] > figures["test"]["nll"]
        assert (figures["temperature"] is None) == (not name.startswith("langevin"))
        assert text.count(report["labels"][name]) == 9
    assert report["methods"]["ensemble-8"][0]["deep_ensemble_equivalent"] == pytest.approx(8)
    assert report["methods"]["map-8"][0]["deep_ensemble_equivalent"] == 1
    compare(runs, tmp_path, 1)
    assert len(in_process) == len(METHODS)
    assert json.loads((tmp_path / "posterior.json").read_text()) == report
