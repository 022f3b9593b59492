"""The report of `benchmarks.uncertainty` as Markdown: mean over seeds ± standard deviation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.columns import Column, Figures, table
from benchmarks.scod import COST, RISK, UNFAMILIAR
from benchmarks.shift import SHIFTED

FACTORS = {"accuracy": 100.0, "nll": 1.0, "ece": 1.0}


def tables(report: dict[str, Any]) -> str:
    """One table a foreign set, and those of false alarms, quality, shift, the gate and SCOD."""
    parts = [_heading(report), *_foreign(report), *_false_alarms(report), *_quality(report)]
    return "\n".join([*parts, *_shift(report), *_gate(report), *_scod(report)])


def _heading(report: dict[str, Any]) -> str:
    return (
        f"# {report['recipe']['name']}: unfamiliar images, selective risk and shift, seeds "
        f"{', '.join(report['seeds'])}\n\n"
        f"{report['machine']}. Mean ± standard deviation over seeds.\n\n"
        "In the tables of unfamiliar sets FPR95 and FPR99 are the shares of the set, in %, that "
        "are accepted when 95 % and 99 % of the test images are. Last column: accepted, in %, at a "
        "false-alarm rate of 0.1 %, with thresholds from 20 random halves of the calibration "
        "images.\n"
    )


def _foreign(report: dict[str, Any]) -> list[str]:
    parts = []
    for name in _sets(report):
        columns = [
            Column("AUROC", _at(name, "auroc"), 4),
            Column("FPR95", _at(name, "fpr95", factor=100), 2),
            Column("FPR99", _at(name, "fpr99", factor=100), 2),
            Column("accepted at 0.1 %", _at(name, "leak", factor=100), 2),
        ]
        parts += [f"## {name}\n", table(report["rows"], columns, "score")]
    return parts


def _false_alarms(report: dict[str, Any]) -> list[str]:
    columns = [
        Column("test images flagged at 1 % (%)", _at("test", "flagged", factor=100), 2),
        Column("± calibration", _at("test", "spread", factor=100), 2),
    ]
    return ["## False alarms\n", table(report["rows"], columns, "score")]


def _quality(report: dict[str, Any]) -> list[str]:
    columns = [
        Column("accuracy (%)", _at("test", "accuracy", factor=100), 2),
        Column("NLL (nats)", _at("test", "nll"), 4),
        Column("ECE", _at("test", "ece"), 4),
        Column("Brier", _at("test", "brier"), 4),
        Column("AURC × 1000", _at("test", "aurc", factor=1000), 3),
        Column("AUGRC × 1000", _at("test", "augrc", factor=1000), 3),
        Column("coverage at 0.1 % (%)", _at("test", "coverage_at_0.001", factor=100), 2),
        Column("coverage at 1 % (%)", _at("test", "coverage_at_0.01", factor=100), 2),
    ]
    text = (
        "Test images, ranked by max p. Coverage at a risk: the largest share of them among which "
        "the error is at most that.\n"
    )
    return ["## Quality\n", text, table(report["methods"], columns)]


def _shift(report: dict[str, Any]) -> list[str]:
    methods = report["methods"]
    names = next(iter(methods.values()))[0]["shift"]
    turned = [name for name in names if name.endswith("°")]
    others = [name for name in names if name not in turned]
    text = (
        f"Views of the same random test images, {SHIFTED:,} or all if there are fewer; other sets "
        "are whole. Turned by degrees; Gaussian noise of a standard deviation in units of the "
        "range of a pixel; Gaussian blur of one in units of the height; hidden: a square of "
        "background of a side in units of the height.\n"
    )
    parts = ["## Shift\n", text]
    figures = (("accuracy", "Accuracy (%)", 2), ("nll", "NLL (nats)", 3), ("ece", "ECE", 3))
    for title, chosen in (("turned", turned), ("seen otherwise", others)):
        for key, named, decimals in figures:
            columns = [
                Column(name, _at("shift", name, key, factor=FACTORS[key]), decimals)
                for name in chosen
            ]
            parts += [f"### {named}, {title}\n", table(methods, columns)]
    return parts


def _gate(report: dict[str, Any]) -> list[str]:
    seeds = report["gate"]
    levels = [
        f"α = {policy['alpha']:g}, p ≥ {policy['min_probability']:.3f}"
        for policy in (seed["policy"] for seed in seeds)
    ]
    rows = {name: [seed["decisions"][name] for seed in seeds] for name in seeds[0]["decisions"]}
    columns = [
        Column("accepted (%)", _at("accepted", factor=100), 2),
        Column("error among the accepted (%)", _at("error_among_accepted", factor=100), 2),
    ]
    text = (
        f"The posterior under its default policy ({'; '.join(dict.fromkeys(levels))}). Its flag "
        "is raised by `fused`, unless the policy names a score. –: images of no class, or a seed "
        "on which none is accepted.\n"
    )
    return ["## The gate\n", text, table(rows, columns, "set")]


def _scod(report: dict[str, Any]) -> list[str]:
    rows = {f"{name}: max probability": seeds for name, seeds in report["methods"].items()}
    rows["the gate: fused and max probability"] = report["gate"]
    text = (
        f"A stream of which {100 * UNFAMILIAR:g} % is unfamiliar. Risk: a wrong answer to a test "
        f"image costs 1, any answer to an unfamiliar one {COST:g}, a mean over what is accepted.\n"
    )
    accepted = [
        Column(name, _at("scod", name, "accepted", factor=100), 2) for name in _sets(report)
    ]
    area = [Column(name, _at("scod", name, "area"), 4) for name in _sets(report)]
    return [
        "## Selective classification with unfamiliar images\n",
        text,
        f"### Test images accepted at a risk of {100 * RISK:g} % (%)\n",
        table(rows, accepted, "ranked by"),
        "### Mean risk over coverages\n",
        table(rows, area, "ranked by"),
    ]


def _sets(report: dict[str, Any]) -> list[str]:
    """Names of the foreign sets."""
    return list(report["gate"][0]["scod"])


def _at(*keys: str, factor: float = 1.0) -> Callable[[Figures], float | None]:
    """The figure at the end of keys, times a factor."""

    def figure(figures: Figures) -> float | None:
        value: Any = figures
        for key in keys:
            value = value[key]
        return None if value is None else factor * float(value)

    return figure
