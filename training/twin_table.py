"""The twin's figures as tables for a terminal, HMC beside the sampler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

MIXING = (("split R-hat", "split_rhat"), ("ESS", "effective_sample_size"))


def tables(figures: dict[str, Any]) -> Iterator[Table]:
    """Tables of `training.fidelity.Fidelity.figures`."""
    yield _sides(figures)
    for part, row in figures["comparisons"].items():
        yield _distances(part, row)


def _sides(figures: dict[str, Any]) -> Table:
    hmc, sampler = sides = figures["hmc"], figures["sampler"]
    table = Table(
        "",
        "hmc",
        figures["sampler_settings"]["name"],
        title=f"twin of {figures['recipe']}: {figures['weights']:,} weights, "
        f"{figures['num_data']:,} training images",
    )
    table.add_row("chains × draws", *[f"{figures['chains']} × {figures['draws']}"] * 2)
    table.add_row("acceptance", f"{hmc['acceptance']:.3f}", "")
    temperatures = [side["temperature"] for side in sides]
    table.add_row(
        "T_conf", *(f"{t['value']:.4f} ± {t['standard_error']:.4f}" for t in temperatures)
    )
    for label, key in MIXING:
        for name, value in hmc[key].items():
            other = f"{sampler[key][name]:.4g}" if name in sampler[key] else ""
            table.add_row(f"{label}, {name}", f"{value:.4g}", other)
    for part in ("test", "ood"):
        for key in hmc.get(part, {}):
            table.add_row(f"{part}, {key}", *(f"{side[part][key]:.4f}" for side in sides))
    return table


def _distances(part: str, row: dict[str, float]) -> Table:
    table = Table("", "agreement", "total variation", title=f"{part}: half against half")
    for label, agreement, distance in (
        ("sampler - hmc", "half_agreement", "total_variation"),
        ("hmc - hmc, the floor", "floor_agreement", "floor_total_variation"),
        ("sampler - sampler", None, "own_total_variation"),
        ("expected of noise alone", None, "expected_total_variation"),
    ):
        shown = f"{row[agreement]:.4f}" if agreement else ""
        table.add_row(label, shown, f"{row[distance]:.4f}")
    table.add_row("all sampler - all hmc", f"{row['agreement']:.4f}", "")
    return table
