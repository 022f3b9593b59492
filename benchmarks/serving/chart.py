"""The capacity of every server as a bar chart."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.figure import Figure


def draw(report: dict[str, Any]) -> Figure:
    """Answers a second of each server, the median and the range over rounds."""
    names = [name for name in report["settings"] if name in report["closed"]]
    rates = [[found["capacity"] for found in report["closed"][name]] for name in names]
    medians = [statistics.median(values) for values in rates]
    below = [middle - min(values) for middle, values in zip(medians, rates, strict=True)]
    above = [max(values) - middle for middle, values in zip(medians, rates, strict=True)]
    colours = ["#0072B2" if not report["settings"][name] else "#999999" for name in names]
    figure = Figure(figsize=(7, 0.4 * len(names) + 1.2))
    axes = figure.subplots()
    axes.barh(names, medians, xerr=(below, above), color=colours, capsize=3)
    axes.invert_yaxis()
    cpus = report["options"]["server_cpus"]
    axes.set_xlabel(f"answers a second on CPU {cpus}, closed loop")
    return figure
