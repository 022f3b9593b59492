"""The posterior beside MAP and a deep ensemble of the same network, data and training cost.

    python -m training run mnist --seed 1 --out runs/mnist-1      (and seeds 2, 3 …)
    python -m training baselines runs/mnist-1
    python -m benchmarks.posterior runs/mnist-1 runs/mnist-2 …

Prints one row a method: the mean over the runs, and ± their standard deviation. Both ensembles are
calibrated on the same held-out images, and neither saw the unfamiliar sets.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.machine import describe
from training.recipe import Recipe

Figures = dict[str, Any]

QUALITY: dict[str, tuple[Callable[[Figures], float], int]] = {
    "accuracy (%)": (lambda test: 100 * test["accuracy"], 2),
    "NLL (nats)": (lambda test: test["nll"], 4),
    "ECE": (lambda test: test["ece"], 4),
    "Brier": (lambda test: test["brier"], 4),
}


def main(runs: Annotated[list[Path], typer.Argument(help="Finished run directories.")]) -> None:
    """Print the tables, in Markdown."""
    recipes = [Recipe.model_validate_json((run / "recipe.json").read_text()) for run in runs]
    methods: dict[str, list[Figures]] = {}
    for run, recipe in zip(runs, recipes, strict=True):
        baselines = run / "baselines.json"
        for name, results in (
            json.loads(baselines.read_text()).items() if baselines.exists() else ()
        ):
            methods.setdefault(name, []).append(results)
        name = f"SGLD posterior, T = {recipe.sampler.temperature:g}, M = {recipe.members}"
        methods.setdefault(name, []).append(json.loads((run / "evaluation.json").read_text()))
    seeds = ", ".join(str(recipe.seed) for recipe in recipes)
    print(f"{recipes[0].name}, seeds {seeds}; {describe('torch', 'onnxruntime')}\n")
    _print_quality(methods)
    for foreign in recipes[0].data.ood:
        _print_separation(methods, foreign)


def _print_quality(methods: dict[str, list[Figures]]) -> None:
    print(f"| test set | seeds | {' | '.join(QUALITY)} |")
    print("|---" * (len(QUALITY) + 2) + "|")
    for method, results in methods.items():
        cells = [
            _cell([figure(result["test"]) for result in results], decimals)
            for figure, decimals in QUALITY.values()
        ]
        print(f"| {method} | {len(results)} | {' | '.join(cells)} |")


def _print_separation(methods: dict[str, list[Figures]], foreign: str) -> None:
    print(f"\n| {foreign} | score | AUROC | FPR95 (%) | FPR99 (%) |\n|---|---|---|---|---|")
    for method, results in methods.items():
        for score in results[0]["ood"][foreign]["separation"]:
            rows = [r["ood"][foreign]["separation"][score] for r in results]
            if score == "mutual_information" and method.startswith("MAP"):
                continue
            cells = [
                _cell([row["auroc"] for row in rows], 4),
                _cell([100 * row["fpr95"] for row in rows], 2),
                _cell([100 * row["fpr99"] for row in rows], 2),
            ]
            print(f"| {method} | {score.replace('_', ' ')} | {' | '.join(cells)} |")


def _cell(values: list[float], decimals: int) -> str:
    spread = f" ± {np.std(values, ddof=1):.{decimals}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{decimals}f}{spread}"


if __name__ == "__main__":
    typer.run(main)
