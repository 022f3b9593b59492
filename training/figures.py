"""The figures of a report, each from plain numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.uncertainty import Array
from training.apart import DECISIONS, shares
from training.relaxation import RELAXED

matplotlib.use("Agg")

DRAWN = 400  # images of each set, at equal distances in its order
COLUMNS = 3
LOOKS = {"accept": ("#009E73", "o"), "uncertain": ("#D55E00", "^"), "ood": ("#0072B2", "x")}
CHOICES = {"served": ("black", "o"), "thinned": ("tab:blue", "s"), "random": ("tab:gray", None)}


def save(figure: Figure, file: Path) -> None:
    """Write a figure as PNG, without a date or version, so that equal figures are equal files."""
    figure.savefig(file, dpi=110, bbox_inches="tight", metadata={"Software": None})


def draw_traces(traces: Array) -> Figure:
    """Validation NLL of single samples, in nats, along each chain; [C, t]."""
    figure, (axes,) = _panels(1)
    for index, trace in enumerate(traces):
        axes.plot(np.arange(1, len(trace) + 1), trace, lw=1, label=str(index))
    axes.set_xlabel("trace point in the sampling phase")
    axes.set_ylabel("validation NLL of one sample (nats)")
    axes.legend(title="chain", fontsize="small", frameon=False, bbox_to_anchor=(1, 1))
    return figure


def draw_temperatures(diagnostics: dict[str, Any]) -> Figure:
    """T_conf with 2 standard errors, overall and by layer, beside what minibatch noise predicts."""
    figure, (axes,) = _panels(1)
    estimates = {"all weights": diagnostics["temperature"], **diagnostics["layers"]}
    values = [estimate["value"] for estimate in estimates.values()]
    errors = [2 * estimate["standard_error"] for estimate in estimates.values()]
    target = diagnostics["asked_temperature"]
    noise = diagnostics.get("gradient_noise_ratio") or {}
    predicted = {name: target * (1 + ratio) for name, ratio in noise.items()}
    axes.axhspan(0.8 * target, 1.2 * target, color="tab:green", alpha=0.12, lw=0)
    axes.axhline(target, color="tab:green", lw=1)
    axes.errorbar(
        range(len(values)), values, yerr=errors, fmt="o", color="black", capsize=4, label="measured"
    )
    if predicted:
        places = [list(estimates).index(name) + 0.16 for name in predicted]
        axes.plot(
            places,
            list(predicted.values()),
            "D",
            color="tab:red",
            mfc="none",
            label="asked × (1 + minibatch noise / injected noise)",
        )
        axes.legend(fontsize="small", frameon=False, loc="upper right")
    everything = [*values, *predicted.values()]
    axes.set_xticks(range(len(values)), list(estimates), rotation=0 if len(values) < 7 else 60)
    axes.set_ylabel("configurational temperature")
    axes.set_ylim(min(0.5, *everything) - 0.05, max(1.5, *everything) + 0.05)
    axes.set_title("measured ± 2 standard errors; green: asked, and the layers' tolerance", size=9)
    return figure


def draw_scores(placed: dict[str, Array], name: str) -> Figure:
    """Share of images above a score, for each set of `training.apart.points`."""
    figure, (axes,) = _panels(1)
    for label, (_, scores, _) in placed.items():
        ordered = np.sort(scores)
        above = 1 - np.arange(len(ordered)) / len(ordered)
        axes.plot(ordered, above, label=label, lw=2 if label.startswith("test") else 1.2)
    axes.set_xscale("symlog", linthresh=1e-4)
    axes.set_yscale("log")
    axes.set_xlabel(f"{name.replace('_', ' ')} (nats)")
    axes.set_ylabel("share of images above")
    axes.legend(frameon=False, fontsize="small")
    return figure


def draw_points(placed: dict[str, Array], name: str) -> Figure:
    """Sets of images by ambiguity and unfamiliarity, a panel each, from `training.apart.points`.

    Grey in every panel: the first set. The line is the lowest score of all that raises the flag.
    No line parts `accept` from `uncertain`: there the policy asks for the label's probability, and
    the colour says what came of it. The colour-blind tell the colours apart (Okabe & Ito 2008).
    """
    rows = -(-len(placed) // COLUMNS)
    figure = Figure(figsize=(9.6, 1 + 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    _, scores, decisions = np.concatenate(list(placed.values()), axis=1)
    flagged = scores[decisions == DECISIONS.index("ood")]
    drawn = {label: values[:, :: -(-values.shape[1] // DRAWN)] for label, values in placed.items()}
    for axes, (label, values) in zip(panels, placed.items(), strict=False):
        ambiguity, score, kinds = drawn[label]
        axes.plot(*next(iter(drawn.values()))[:2], "o", ms=2.5, color="0.82", mew=0)
        for kind, decision in enumerate(DECISIONS):
            of, (color, marker) = kinds == kind, LOOKS[decision]
            axes.plot(ambiguity[of], score[of], marker, ms=3, mew=0.7, color=color, label=decision)
        if flagged.size:
            axes.axhline(flagged.min(), color="black", lw=0.8, ls="--", label="least flagged score")
        parts = [f"{decision} {100 * part:.1f} %" for decision, part in shares(values).items()]
        axes.set_title(f"{label}: {values.shape[1]:,} images\n{', '.join(parts)}", size=8.5)
        if np.abs(scores).max() > 1:
            axes.set_yscale("symlog", linthresh=1, linscale=0.5)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(placed) :]:
        axes.set_axis_off()
    panels[0].set(xlim=(0, None), ylim=(0 if scores.min() >= 0 else None, None))
    figure.supxlabel("expected entropy (nats): how ambiguous", size=10)
    figure.supylabel(f"{name.replace('_', ' ')}: how unfamiliar", size=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def draw_members(curves: dict[str, Any]) -> Figure:
    """Total variation, NLL and mutual information against M, from `training.members.curves`."""
    panels = {
        "total_variation": "total variation to all samples",
        "nll": "NLL (nats)",
        "mutual_information": "mutual information (nats)",
    }
    figure, axes = _panels(len(panels))
    counts = curves["members"]
    for panel, (quantity, label) in zip(axes, panels.items(), strict=True):
        for name, (color, marker) in CHOICES.items():
            values = np.array(curves[name][quantity])
            style = "-" if marker else "--"
            panel.plot(counts, values, style, marker=marker, ms=4, lw=1.2, color=color, label=name)
        spread = np.array(curves["random"][f"{quantity}_std"])
        middle = np.array(curves["random"][quantity])
        panel.fill_between(counts, middle - spread, middle + spread, color="tab:gray", alpha=0.2)
        if quantity == "total_variation":
            panel.set_yscale("log")
        else:
            panel.axhline(curves["all"][quantity], color="tab:green", lw=1, label="all samples")
        panel.set_xscale("log", base=2)
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.tick_params(axis="x", which="minor", bottom=False)
        panel.set_xlabel("members")
        panel.set_ylabel(label)
    axes[1].legend(frameon=False, fontsize="small")
    figure.suptitle(
        f"{curves['images']:,} held-out images that selection did not see; "
        "band: one standard deviation of random choices",
        size=9,
    )
    return figure


def draw_relaxation(relaxation: dict[str, Any]) -> Figure:
    """KL of windows from the end of the trace against epochs, one curve an observable."""
    figure, (axes,) = _panels(1)
    scale = relaxation["epochs_per_point"]
    for index, (name, curve) in enumerate(relaxation["curves"].items()):
        color = f"C{index}"
        starts = scale * np.array(curve["starts"])
        axes.plot(starts, np.maximum(curve["kl"], 1e-4), "o-", ms=3, lw=1, color=color, label=name)
        if curve["burn_in"] is not None:
            axes.axvline(scale * curve["burn_in"], color=color, lw=1, ls=":")
    axes.axhline(RELAXED, color="tab:green", lw=1)
    axes.set_yscale("log")
    axes.set_xlabel("epochs since the warm start")
    axes.set_ylabel("KL from the end of the trace (nats)")
    axes.set_title("green: taken for relaxed; dotted: burn-in of each curve", size=9)
    axes.legend(frameon=False, fontsize="small")
    return figure


def draw_mixing(mixing: dict[str, list[float]]) -> Figure:
    """R-hat and effective sample size of random predictive coordinates, as histograms."""
    figure, axes = _panels(2)
    labels = {"rhat": "rank-normalised split R-hat", "ess": "bulk effective sample size"}
    for panel, (name, label) in zip(axes, labels.items(), strict=True):
        panel.hist(mixing[name], bins=20, color="tab:blue")
        panel.set_xlabel(label)
    axes[0].set_ylabel(f"coordinates, of {len(mixing['rhat'])}")
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    width = 6.4 if count == 1 else 3.9 * count
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels
