"""The methods by name; each is fitted once in a run directory.

map-M         the M networks of ensemble-M, judged one by one
ensemble-M    deep ensemble
dropout       MC dropout
swag          SWAG from the first network of ensemble-8
laplace       last-layer Laplace at the first network of ensemble-8
langevin-T    the recipe's own sampler at temperature T
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from training.baselines.dropout import dropout
from training.baselines.ensemble import DRAWS, Ensemble, timed
from training.baselines.langevin import langevin
from training.baselines.laplace import laplace
from training.baselines.modes import alone, deep_ensemble
from training.baselines.swag import swag
from training.chains import Progress
from training.run import Run

START = 8  # networks in the ensemble whose first one SWAG and Laplace start from


class MethodError(ValueError):
    """A name that is no method's."""


def fit(name: str, run: Run, workers: int | None, report: Callable[[Progress], None]) -> Ensemble:
    """Fit a method at the training cost of the run's chains, or read what was fitted before.

    Results are in `baselines/NAME` of the run directory.

    Raises:
        MethodError: there is no such method.
    """
    label(name, 1)
    folder = run.path / "baselines" / name
    file = folder / "ensemble.npz"
    if file.exists():
        return Ensemble.read(file)
    ensemble = _fit(name, run, folder, workers, report)
    ensemble.write(file)
    return ensemble


def _fit(
    name: str, run: Run, folder: Path, workers: int | None, report: Callable[[Progress], None]
) -> Ensemble:
    kind, _, argument = name.partition("-")
    match kind:
        case "map":
            return alone(fit(f"ensemble-{argument}", run, workers, report))
        case "ensemble":
            return deep_ensemble(run, folder, int(argument), workers, report)
        case "langevin":
            return langevin(run, folder, float(argument), workers, report)
        case "dropout":
            ensemble, seconds = timed(lambda: dropout(run.problem, report))
        case _:
            start = alone(fit(f"ensemble-{START}", run, workers, report))
            if kind == "swag":
                ensemble, seconds = timed(lambda: swag(run.problem, start, report))
            else:
                ensemble, seconds = timed(lambda: laplace(run.problem, start))
    return replace(ensemble, seconds=ensemble.seconds + seconds)


def label(name: str, members: int) -> str:
    """A method's name in tables.

    Args:
        name: of the method.
        members: M of a sampled ensemble.

    Raises:
        MethodError: there is no such method.
    """
    try:
        match name.split("-", maxsplit=1):
            case ["map", count] if int(count) > 0:
                return f"MAP, mean of {int(count)}"
            case ["ensemble", count] if int(count) > 0:
                return f"deep ensemble, M = {int(count)}"
            case ["langevin", temperature] if float(temperature) >= 0:
                return f"Langevin, T = {float(temperature):g}, M = {members}"
            case ["dropout"]:
                return f"MC dropout, M = {DRAWS}"
            case ["swag"]:
                return f"SWAG, M = {DRAWS}"
            case ["laplace"]:
                return f"last-layer Laplace, M = {DRAWS}"
    except ValueError:
        pass
    raise MethodError(
        f"no method {name!r}: use map-M, ensemble-M, dropout, swag, laplace or langevin-T, "
        "as in ensemble-8 and langevin-0.1"
    )
