"""Markdown tables of figures: a row a method, mean over seeds ± standard deviation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Figures = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One figure of a row on a seed, and how it is printed; `missing` where a seed has none."""

    title: str
    figure: Callable[[Figures], float | None]
    decimals: int
    missing: str = "–"

    def cell(self, seeds: Sequence[Figures]) -> str:
        """Mean ± standard deviation over seeds, the latter unless it is 0."""
        values = [value for value in map(self.figure, seeds) if value is not None]
        if len(values) < len(seeds):
            return self.missing
        spread = f" ± {np.std(values, ddof=1):.{self.decimals}f}" if len(set(values)) > 1 else ""
        return f"{np.mean(values):.{self.decimals}f}{spread}"


def table(
    rows: Mapping[str, Sequence[Figures]], columns: Sequence[Column], corner: str = "method"
) -> str:
    """A table of rows, each with its figures on every seed; `corner` is the title of names."""
    lines = [
        f"| {corner} | {' | '.join(column.title for column in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, seeds in rows.items():
        cells = " | ".join(column.cell(seeds) for column in columns)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"
