"""The model card, in Markdown (Mitchell et al. 2019, arXiv 1810.03993)."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.manifest import Manifest
from training.card_results import result_lines

PERCENT = 100
EXPLAINS = 0.5  # share of a layer's excess temperature at which noise is called its likely reason


def model_card(manifest: Manifest, diagnostics: dict[str, Any]) -> str:
    """The card of a bundle, from its manifest and the figures of `training.verdict`.

    A layer whose temperature failed is named, with what its minibatch noise has to do with it.
    What `training.report` calls optional is left out where it is absent.
    """
    train = next(part for part in manifest.data if part.role == "train")
    posterior, members = manifest.posterior, manifest.members
    verdict = "verified" if manifest.verdict.verified else "UNVERIFIED"
    return "\n".join(
        [
            f"# Model card: {manifest.name}, version {manifest.version}",
            "",
            f"An ensemble of {members.count} {manifest.network.name} networks "
            f"({manifest.network.num_weights:,} weights each), drawn by "
            f"{manifest.sampler['name'].upper()} from the posterior at T = "
            f"{posterior.temperature:g} given {posterior.num_data:,} images of {train.name}. "
            f"Classes: {', '.join(manifest.labels)}.",
            "",
            f"**Prior.** {posterior.prior_family.capitalize()}; its scale was chosen "
            f"{posterior.prior_chosen}.",
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
                f"| {name} | {check.value:g} | {check.accepted}"
                + (" |" if check.passed else ": failed |")
                for name, check in manifest.verdict.checks.items()
            ),
            "",
            *_failed_layer_lines(manifest, diagnostics),
            f"Chains: {manifest.sampler['chains']}; mean single-sample validation NLL by chain: "
            + ", ".join(f"{v:.4f}" for v in diagnostics["observables"]["nll"]["chain_means"])
            + ".",
            "",
            *_mixing_lines(diagnostics),
            *_member_lines(diagnostics),
            *_prior_lines(diagnostics),
            *result_lines(manifest),
            "Figures: `report/`. Every number here is also in `report/report.json` or in "
            "`manifest.json`.",
            "",
        ]
    )


def _failed_layer_lines(manifest: Manifest, diagnostics: dict[str, Any]) -> list[str]:
    """Which layers are at another temperature than asked, by how much, and why."""
    asked = diagnostics["asked_temperature"]
    noise = diagnostics.get("gradient_noise_ratio") or {}
    lines = []
    for name in diagnostics["layers"]:
        check = manifest.verdict.checks.get(f"temperature.{name}")
        if check is None or check.passed or asked == 0:
            continue
        excess = check.value / asked - 1
        state, side = ("hot", "above") if excess > 0 else ("cold", "below")
        lines += [
            f"Layer {name} is too {state}: T = {check.value:.3g}, {_whole_percent(abs(excess))} "
            f"{side} the {asked:g} asked. {_reason(excess, noise.get(name))}",
            "",
        ]
    return lines


def _reason(excess: float, ratio: float | None) -> str:
    if excess < 0:
        return "Likely reason: it has not yet forgotten its start; a longer burn-in would tell."
    if ratio is None:
        return "Its gradient-noise ratio was not measured."
    noise = f"the noise of its minibatch gradients is {_whole_percent(ratio)} of the injected noise"
    if ratio >= EXPLAINS * excess:
        return f"Likely reason: {noise}; a shorter step or a larger batch lowers both alike."
    return f"Not for minibatch noise alone: {noise}. The step may be long for its curvature."


def _mixing_lines(diagnostics: dict[str, Any]) -> list[str]:
    lines = []
    if mixing := diagnostics.get("coordinates"):
        rhat, ess = mixing["rhat"], mixing["ess"]
        lines.append(
            f"{len(rhat)} random predictive coordinates: rank-normalised R-hat has median "
            f"{np.median(rhat):.3f} and maximum {max(rhat):.3f}; effective draws have median "
            f"{np.median(ess):.0f} and minimum {min(ess):.0f}."
        )
    if drift := diagnostics.get("drift"):
        lines.append(
            "Second half less first half of the sampling phase, in standard errors: "
            + ", ".join(f"{name} {z:+.1f}" for name, z in drift.items())
            + "."
        )
    if relaxation := diagnostics.get("relaxation"):
        scale = relaxation["epochs_per_point"]
        lines.append(
            "Epochs after the warm start until relaxed (KL below 0.1 nats in two windows): "
            + ", ".join(
                f"{name} {'not seen' if (at := curve['burn_in']) is None else f'{scale * at:g}'}"
                for name, curve in relaxation["curves"].items()
            )
            + "."
        )
    return [*(part for line in lines for part in (line, ""))]


def _member_lines(diagnostics: dict[str, Any]) -> list[str]:
    curves = diagnostics.get("members")
    if not curves:
        return []
    full, choices = curves["all"], {name: curves[name] for name in ("served", "thinned", "random")}
    return [
        "## Members",
        "",
        f"{curves['members'][-1]} of {curves['samples']} samples are served ({curves['selection']} "
        f"selection). Against all of them, on {curves['images']:,} held-out images that selection "
        "did not see:",
        "",
        "| as many members | total variation | NLL | predictive entropy | mutual information |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {choice['total_variation'][-1]:.5f} | {choice['nll'][-1]:.4f} "
            f"| {choice['predictive_entropy'][-1]:.4f} | {choice['mutual_information'][-1]:.4f} |"
            for name, choice in choices.items()
        ),
        f"| all samples | | {full['nll']:.4f} | {full['predictive_entropy']:.4f} "
        f"| {full['mutual_information']:.4f} |",
        "",
    ]


def _prior_lines(diagnostics: dict[str, Any]) -> list[str]:
    prior = diagnostics.get("prior_predictive")
    if not prior:
        return []
    return [
        "## Prior",
        "",
        f"Before training, on {prior['images']:,} images, {prior['draws']} networks drawn from the "
        f"prior have a mean largest probability of {prior['max_probability']:.3f}, an entropy of "
        f"{prior['entropy']:.3f} of ln K, and a logit standard deviation of "
        f"{prior['logit_std']:.2f}. Disagreement between them is "
        f"{_whole_percent(prior['mutual_information'])} of the average prediction's entropy; "
        f"{_whole_percent(prior['one_class'])} of them give over 90 % of the images one class.",
        "",
    ]


def _whole_percent(share: float) -> str:
    return f"{PERCENT * share:.0f} %"
