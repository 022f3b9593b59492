"""The report of `benchmarks.posterior` as Markdown tables: mean over seeds ± standard deviation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.columns import Column, Figures, table

SEPARATIONS = (
    ("auroc", "AUROC", 1, 4),
    ("fpr95", "FPR95 (%)", 100, 2),
    ("fpr99", "FPR99 (%)", 100, 2),
)
SHIFTS = (("accuracy", "accuracy (%)", 100, 2), ("nll", "NLL", 1, 4), ("ece", "ECE", 1, 4))


def tables(report: dict[str, Any]) -> str:
    """The whole report."""
    example: Figures = report["methods"]["ensemble-8"][0]
    beyond = f"> {len(example['curve'])}"
    quality = [
        Column("accuracy (%)", lambda f: 100 * f["test"]["accuracy"], 2),
        Column("NLL (nats)", lambda f: f["test"]["nll"], 4),
        Column("ECE", lambda f: f["test"]["ece"], 4),
        Column("Brier", lambda f: f["test"]["brier"], 4),
        Column("AURC × 1000", lambda f: 1000 * f["test"]["aurc"], 3),
        Column("equivalent networks", lambda f: f["deep_ensemble_equivalent"], 2, beyond),
    ]
    cost = [
        Column("members", lambda f: f["members"], 0),
        Column("epochs", lambda f: f["epochs"], 0),
        Column("CPU seconds", lambda f: f["seconds"], 0),
        Column("measured temperature", lambda f: f["temperature"], 4),
        Column("dropout rate", lambda f: f["settings"].get("rate"), 2),
    ]
    parts = [
        _heading(report),
        "## Test set\n",
        "Equivalent networks: size of the deep ensemble (of ensembles of the same 8 networks) with "
        "this NLL.\n",
        _table(report, quality),
    ]
    for score in ("predictive_entropy", "mutual_information") if example["ood"] else ():
        for key, title, factor, decimals in SEPARATIONS:
            columns = [
                Column(name, _separation(name, score, key, factor), decimals)
                for name in example["ood"]
            ]
            parts += [f"## {title} by {score.replace('_', ' ')}\n", _table(report, columns)]
    parts += [
        "## The same classes, seen otherwise\n",
        f"Turned: mean over {', '.join(example['rotation'])} degrees.\n",
        _table(report, _shifted(example)),
        "## Cost\n",
        _table(report, cost),
    ]
    return "\n".join(parts)


def _heading(report: dict[str, Any]) -> str:
    seeds = ", ".join(str(seed) for seed in report["seeds"])
    return (
        f"# {report['recipe']['name']}: one network, many ensembles\n\n"
        f"At most {report['epochs']} training epochs a method, all its networks together. "
        f"Seeds {seeds}: mean ± standard deviation. {report['machine']}.\n"
    )


def _table(report: dict[str, Any], columns: Sequence[Column]) -> str:
    rows = {report["labels"][name]: seeds for name, seeds in report["methods"].items()}
    return table(rows, columns)


def _separation(
    foreign: str, score: str, key: str, factor: float
) -> Callable[[Figures], float | None]:
    """A single network has no mutual information, and so no figure."""

    def figure(figures: Figures) -> float | None:
        if score == "mutual_information" and figures["test"][score] == 0:
            return None
        return factor * float(figures["ood"][foreign][score][key])

    return figure


def _shifted(example: Figures) -> list[Column]:
    columns = []
    for key, title, factor, decimals in SHIFTS:
        columns.append(Column(f"turned: {title}", _turned(key, factor), decimals))
        columns += [
            Column(f"{name}: {title}", _shift(name, key, factor), decimals)
            for name in example["shift"]
        ]
    return columns


def _turned(key: str, factor: float) -> Callable[[Figures], float]:
    return lambda f: factor * float(np.mean([values[key] for values in f["rotation"].values()]))


def _shift(name: str, key: str, factor: float) -> Callable[[Figures], float]:
    return lambda f: factor * float(f["shift"][name][key])
