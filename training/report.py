"""Figures, `report.json` and the model card that go into the bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.manifest import Manifest
from models.uncertainty import Array
from training.chains import ChainResult

matplotlib.use("Agg")

PERCENT = 100


def write(
    folder: Path,
    manifest: Manifest,
    diagnostics: dict[str, Any],
    chains: list[ChainResult],
    scores: dict[str, Array],
) -> None:
    """Write `report/` and `MODEL_CARD.md` into `folder`.

    Args:
        folder: the bundle to be.
        manifest: what is published.
        diagnostics: figures of `training.verdict`.
        chains: finished chains, for their traces.
        scores: the flag's score on the test set (key "test") and on unfamiliar sets.
    """
    report = folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    content = {
        "verdict": manifest.verdict.model_dump(),
        "verified": manifest.verdict.verified,
        "diagnostics": diagnostics,
        "results": manifest.results,
    }
    (report / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    _save(_draw_traces(chains), report / "traces.png")
    _save(_draw_temperatures(diagnostics), report / "temperatures.png")
    _save(_draw_scores(manifest, scores), report / "scores.png")
    (folder / "MODEL_CARD.md").write_text(model_card(manifest, diagnostics))


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=110, bbox_inches="tight", metadata={"Software": None})


def _axes(width: float = 6.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 3.6))
    axes: Axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_traces(chains: list[ChainResult]) -> Figure:
    figure, axes = _axes()
    for index, chain in enumerate(chains):
        axes.plot(np.arange(1, len(chain.trace) + 1), chain.trace[:, 0], lw=1, label=str(index))
    axes.set_xlabel("trace point in the sampling phase")
    axes.set_ylabel("validation NLL of one sample (nats)")
    axes.legend(title="chain", fontsize="small", frameon=False, bbox_to_anchor=(1, 1))
    return figure


def _draw_temperatures(diagnostics: dict[str, Any]) -> Figure:
    figure, axes = _axes()
    estimates = {"all weights": diagnostics["temperature"], **diagnostics["layers"]}
    values = [estimate["value"] for estimate in estimates.values()]
    errors = [2 * estimate["standard_error"] for estimate in estimates.values()]
    target = diagnostics["asked_temperature"]
    axes.axhspan(0.8 * target, 1.2 * target, color="tab:green", alpha=0.12, lw=0)
    axes.axhline(target, color="tab:green", lw=1)
    axes.errorbar(range(len(values)), values, yerr=errors, fmt="o", color="black", capsize=4)
    axes.set_xticks(range(len(values)), list(estimates))
    axes.set_ylabel("configurational temperature")
    axes.set_ylim(min(0.5, *values) - 0.05, max(1.5, *values) + 0.05)
    axes.set_title("measured ± 2 standard errors; green: asked, and the layers' tolerance", size=9)
    return figure


def _draw_scores(manifest: Manifest, scores: dict[str, Array]) -> Figure:
    figure, axes = _axes()
    for name, values in scores.items():
        ordered = np.sort(values)
        rejected = 1 - np.arange(len(ordered)) / len(ordered)
        axes.plot(ordered, rejected, label=name, lw=2 if name == "test" else 1.2)
    axes.set_xscale("symlog", linthresh=1e-4)
    axes.set_yscale("log")
    axes.set_xlabel(f"{manifest.calibration.score.replace('_', ' ')} (nats)")
    axes.set_ylabel("share of images above")
    axes.legend(frameon=False, fontsize="small")
    return figure


def model_card(manifest: Manifest, diagnostics: dict[str, Any]) -> str:
    """The model card, in Markdown (Mitchell et al. 2019, arXiv 1810.03993)."""
    test = manifest.results["test"]
    train = next(part for part in manifest.data if part.role == "train")
    posterior, members = manifest.posterior, manifest.members
    verdict = "verified" if manifest.verdict.verified else "UNVERIFIED"
    return "\n".join(
        [
            f"# Model card: {manifest.name}, version {manifest.version}",
            "",
            f"An ensemble of {members.count} {manifest.network.name} networks "
            f"({manifest.network.num_weights:,} weights each), drawn by SGLD from the posterior at "
            f"T = {posterior.temperature:g} given {posterior.num_data:,} images of "
            f"{train.name}. Classes: {', '.join(manifest.labels)}.",
            "",
            "**Intended use.** Classify images like those it was trained on, and abstain on "
            "others. The false-alarm rate of its out-of-distribution flag is known for images "
            "exchangeable with the calibration images; how many unfamiliar images it catches is "
            "measured, not promised. Not for decisions without a person behind every abstention.",
            "",
            f"## Sampler: {verdict}",
            "",
            "| check | value | accepted |",
            "|---|---|---|",
            *(
                f"| {name} | {check.value:g} | {check.accepted} |"
                + ("" if check.passed else " failed")
                for name, check in manifest.verdict.checks.items()
            ),
            "",
            f"Chains: {manifest.sampler['chains']}; mean single-sample validation NLL by chain: "
            + ", ".join(f"{v:.4f}" for v in diagnostics["observables"]["nll"]["chain_means"])
            + ".",
            "",
            f"## On the test set ({_size(manifest, 'test'):,} images)",
            "",
            "| | ensemble | one member (mean) |",
            "|---|---|---|",
            f"| accuracy | {_percent(test['accuracy'])} | {_percent(test['member_accuracy'])} |",
            f"| NLL (nats) | {test['nll']:.4f} | |",
            f"| ECE, 15 bins | {test['ece']:.4f} | |",
            f"| Brier | {test['brier']:.4f} | |",
            "",
            f"Flag ({manifest.calibration.score}, {manifest.calibration.size:,} calibration "
            "images): share of test images flagged at α = "
            + ", ".join(
                f"{_percent(float(alpha))}: {_percent(rate)}"
                for alpha, rate in test["flag_rate"][manifest.calibration.score].items()
            )
            + ".",
            "",
            *_foreign_lines(manifest),
            *_shift_lines(manifest),
            "## Policies",
            "",
            "| policy | α | least probability | accepted | error among accepted |",
            "|---|---|---|---|---|",
            *(
                f"| {name} | {policy.alpha:g} | {policy.min_probability:g} "
                f"| {_percent(test['policies'][name]['accepted'])} "
                f"| {_percent(test['policies'][name]['error_among_accepted'])} |"
                for name, policy in manifest.policies.items()
            ),
            "",
            "Figures: `report/`. Every number here is also in `report/report.json`.",
            "",
        ]
    )


def _foreign_lines(manifest: Manifest) -> list[str]:
    if not manifest.results["ood"]:
        return []
    return [
        "## On unfamiliar images",
        "",
        "Share of them accepted when 95 % (FPR95) and 99 % (FPR99) of the test set is accepted by "
        "each score.",
        "",
        "| set | score | AUROC | FPR95 | FPR99 |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {score} | {values['auroc']:.4f} | {_percent(values['fpr95'])} "
            f"| {_percent(values['fpr99'])} |"
            for name, results in manifest.results["ood"].items()
            for score, values in results["separation"].items()
        ),
        "",
        "| set | flagged at α = 1 % | accepted by the default policy |",
        "|---|---|---|",
        *(
            f"| {name} | {_percent(results['flag_rate'][manifest.calibration.score]['0.01'])} "
            f"| {_percent(results['policies']['default']['accepted'])} |"
            for name, results in manifest.results["ood"].items()
        ),
        "",
    ]


def _shift_lines(manifest: Manifest) -> list[str]:
    if not manifest.results["shift"]:
        return []
    return [
        "## On the same classes, seen otherwise",
        "",
        "| set | accuracy | NLL | accepted by the default policy | error among accepted |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {_percent(results['accuracy'])} | {results['nll']:.4f} "
            f"| {_percent(results['policies']['default']['accepted'])} "
            f"| {_percent(results['policies']['default']['error_among_accepted'])} |"
            for name, results in manifest.results["shift"].items()
        ),
        "",
    ]


def _size(manifest: Manifest, role: str) -> int:
    return next(part.size for part in manifest.data if part.role == role)


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{PERCENT * share:.2f} %"
