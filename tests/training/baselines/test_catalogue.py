from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.baselines.catalogue import MethodError, fit, label
from training.baselines.ensemble import DRAWS, budget
from training.chains import Progress
from training.recipe import Recipe
from training.run import Run


def silent(step: Progress) -> None:
    pass


@pytest.mark.parametrize(
    "name",
    ["", "svi", "ensemble", "ensemble-", "ensemble-0", "ensemble--2", "map-x", "langevin",
     "langevin--1", "langevin-nan", "dropout-2", "swag-"],
)  # fmt: skip
def test_unknown_methods_are_refused_with_the_known_ones(tiny: Recipe, name: str) -> None:
    with pytest.raises(MethodError, match="use map-M, ensemble-M, dropout, swag, laplace or"):
        fit(name, Run(tiny, Path("absent"), Path("absent")), 1, silent)


def test_labels_say_how_many_members() -> None:
    assert label("langevin-1e-4", 24) == "Langevin, T = 0.0001, M = 24"
    assert label("ensemble-5", 24) == "deep ensemble, M = 5"
    assert label("swag", 24) == f"SWAG, M = {DRAWS}"


@pytest.mark.usefixtures("in_process")
def test_every_method_is_fitted_once_and_read_back(tiny: Recipe, tmp_path: Path) -> None:
    run = Run.create(tiny, tmp_path, tmp_path)
    members = {"ensemble-8": 8, "map-8": 8, "laplace": DRAWS, "swag": DRAWS, "langevin-0.1": 4}
    for name, count in members.items():
        ensemble = fit(name, run, 1, silent)
        assert ensemble.positions.shape == (count, run.problem.network.num_weights)
        assert np.isfinite(ensemble.positions).all()
        assert len(np.unique(ensemble.positions[:, -1])) == count
        assert ensemble.seconds > 0
        assert ensemble.epochs <= budget(tiny)

        def never(step: Progress) -> None:
            raise AssertionError("computed twice")

        again = fit(name, run, 1, never)
        assert (again.positions == ensemble.positions).all()
        assert again == type(again)(
            again.positions,
            ensemble.epochs,
            ensemble.seconds,
            ensemble.temperature,
            ensemble.settings,
            ensemble.together,
        )
    sampled = fit("langevin-0.1", run, 1, silent)
    assert sampled.temperature is not None
    assert (fit("map-8", run, 1, silent).together, sampled.together) == (False, True)


@pytest.mark.usefixtures("in_process")
def test_time_of_an_attempt_that_was_stopped_counts(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tiny, tmp_path, tmp_path)

    def stop(self: Run, workers: int | None, report: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "sample", stop)
        with pytest.raises(KeyboardInterrupt):
            fit("ensemble-2", run, 1, silent)
    file = tmp_path / "baselines" / "ensemble-2" / "seconds"
    assert float(file.read_text()) >= 0
    file.write_text("1000.0")
    assert fit("ensemble-2", run, 1, silent).seconds > 1000
