"""The capacity of every server as a bar chart."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.figure import Figure

from benchmarks.serving.tables import quartiles
from benchmarks.serving.turns import best


def draw(report: dict[str, Any]) -> Figure:
    """Answers a second of each server, side by side: the median, and the quartiles of the turns."""
    turns = report["turns"]
    names = [name for name in report["settings"] if name in turns]
    rates = [best(turns[name])[1] for name in names]
    medians = [statistics.median(values) for values in rates]
    spans = [quartiles(values) for values in rates]
    below = [middle - low for middle, (low, _) in zip(medians, spans, strict=True)]
    above = [high - middle for middle, (_, high) in zip(medians, spans, strict=True)]
    colours = ["#0072B2" if not report["settings"][name] else "#999999" for name in names]
    figure = Figure(figsize=(7, 0.4 * len(names) + 1.2))
    axes = figure.subplots()
    axes.barh(names, medians, xerr=(below, above), color=colours, capsize=3)
    axes.invert_yaxis()
    cpus = report["options"]["server_cpus"]
    axes.set_xlabel(f"answers a second on CPU {cpus}, closed loop, in turns")
    return figure
