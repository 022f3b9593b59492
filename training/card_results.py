"""What a model card says of results: test, shifted, foreign and ambiguous images, and policies."""

from __future__ import annotations

from models.manifest import Manifest
from models.policy import Policy

PERCENT = 100


def result_lines(manifest: Manifest) -> list[str]:
    """The card's sections on `results`, in Markdown, line by line."""
    test = manifest.results["test"]
    size = next(part.size for part in manifest.data if part.role == "test")
    return [
        f"## On the test set ({size:,} images)",
        "",
        "| | ensemble | one member (mean) |",
        "|---|---|---|",
        f"| accuracy | {_percent(test['accuracy'])} | {_percent(test['member_accuracy'])} |",
        f"| NLL (nats) | {test['nll']:.4f} | |",
        f"| ECE, 15 bins | {test['ece']:.4f} | |",
        f"| Brier | {test['brier']:.4f} | |",
        f"| AURC, AUGRC (× 1000) | {1000 * test['aurc']:.3f}, {1000 * test['augrc']:.3f} | |",
        "| coverage at 0.1 %, 1 % error | "
        f"{_percent(test['coverage_at_0.001'])}, {_percent(test['coverage_at_0.01'])} | |",
        "",
        f"Flag ({manifest.calibration.score}, {manifest.calibration.size:,} calibration "
        "images): share of test images flagged at α = "
        + ", ".join(
            f"{_percent(float(alpha))}: {_percent(rate)}"
            for alpha, rate in test["flag_rate"][manifest.calibration.score].items()
        )
        + ".",
        "",
        *_choice_lines(manifest),
        *_class_lines(manifest),
        *_set_lines(manifest),
        *_foreign_lines(manifest),
        *_shift_lines(manifest),
        *_ambiguity_lines(manifest),
        "## Policies",
        "",
        "| policy | flag | α | least probability | accepted | error among accepted "
        "| members asked |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {policy.score or manifest.calibration.score} | {_alpha(policy)} "
            f"| {policy.min_probability:g} "
            f"| {_percent(test['policies'][name]['accepted'])} "
            f"| {_percent(test['policies'][name]['error_among_accepted'])} "
            f"| {policy.members}: {test['policies'][name]['members']:.1f} |"
            for name, policy in manifest.policies.items()
        ),
        "",
        *_agreement_lines(manifest),
        *_certificate_lines(manifest),
    ]


def _choice_lines(manifest: Manifest) -> list[str]:
    detection = manifest.results.get("detection")
    if not detection:
        return []
    best, second, *_ = sorted(detection["misses"].values())
    alone = sorted(detection["alone"].items(), key=lambda item: item[1])
    return [
        f"`fused` is made of {', '.join(manifest.calibration.fused)}: of all choices this lets the "
        "fewest outliers pass that were made of training images, "
        f"{_percent(best)} (mean over families, at thresholds that 95 % and 99 % of training "
        f"images pass); the next best choice {_percent(second)}. Alone: "
        + ", ".join(f"{name} {_percent(share)}" for name, share in alone)
        + ".",
        "",
    ]


def _class_lines(manifest: Manifest) -> list[str]:
    rates = manifest.results["test"].get("class_flag_rate")
    if not rates:
        return []
    marginal, within = rates["marginal"]["0.01"], rates["class"]["0.01"]
    return [
        "The same by predicted class, at α = 1 %: with p-values over all calibration images, and "
        "over those of the class, which a policy with `conditional_on` takes.",
        "",
        "| predicted class | over all | over the class |",
        "|---|---|---|",
        *(
            f"| {label} | {_percent(marginal[index])} | {_percent(within[index])} |"
            for index, label in ((str(number), each) for number, each in enumerate(manifest.labels))
        ),
        "",
    ]


def _set_lines(manifest: Manifest) -> list[str]:
    sets = manifest.prediction_sets
    if sets is None:
        return []
    measured = {"test": manifest.results["test"], **manifest.results["shift"]}
    return [
        "## Prediction sets",
        "",
        f"A set ({sets.score}, {sets.calibration_size:,} calibration images) holds the true label "
        f"of an image like them with probability at least {PERCENT * sets.coverage:g} %, on "
        "average over images and calibration sets. Nothing is promised of shifted images, or of a "
        "single class.",
        "",
        "| set of images | coverage | labels in a set (mean) |",
        "|---|---|---|",
        *(
            f"| {name} | {_percent(figures['prediction_sets']['coverage'])} "
            f"| {figures['prediction_sets']['mean_size']:.3f} |"
            for name, figures in measured.items()
        ),
        "",
    ]


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
        "R-hat: of the mean entropy of single samples, between chains; what the chains say of such "
        "images takes longer to mix than what they say of familiar ones.",
        "",
        "| set | flagged at α = 1 % | accepted by the default policy | R-hat |",
        "|---|---|---|---|",
        *(
            f"| {name} | {_percent(results['flag_rate'][manifest.calibration.score]['0.01'])} "
            f"| {_percent(results['policies']['default']['accepted'])} "
            f"| {results['entropy_rhat']:.3f} |"
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


def _ambiguity_lines(manifest: Manifest) -> list[str]:
    figures = manifest.results.get("ambiguous")
    if not figures:
        return []
    rows = {"ambiguous over test": figures["auroc_over_test"]} | {
        f"{name} over ambiguous": aurocs for name, aurocs in figures["auroc_over_ambiguous"].items()
    }
    return [
        "## On ambiguous images",
        "",
        f"{figures['images']:,} images halfway between test images of two classes that nearly "
        f"coincide. The two labels carry {_percent(figures['both_labels'])} of the probability, "
        f"and are the two most probable on {_percent(figures['two_most_likely'])}. AUROC, the "
        "chance that an image of the first set scores higher than one of the second "
        "(`report/apart.png`):",
        "",
        f"| | {' | '.join(name.replace('_', ' ') for name in figures['auroc_over_test'])} |",
        "|---" * (len(figures["auroc_over_test"]) + 1) + "|",
        *(
            f"| {name} | {' | '.join(f'{value:.3f}' for value in aurocs.values())} |"
            for name, aurocs in rows.items()
        ),
        "",
    ]


def _agreement_lines(manifest: Manifest) -> list[str]:
    if not manifest.agreements:
        return []
    return [
        "A confident policy asks no more members than make it sure, and decides otherwise than all "
        "would on at most this share of images like the calibration images:",
        "",
        "| policy | differs | confidence | calibration images | of them differ | sure at |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | at most {_percent(each.rate)} | {PERCENT * each.confidence:g} % "
            f"| {each.calibration_size:,} | {each.differing} "
            f"| {_sure_at(manifest.policies[name])} |"
            for name, each in manifest.agreements.items()
        ),
        "",
    ]


def _sure_at(policy: Policy) -> str:
    return ", ".join(f"{each:g}" for each in policy.settled_at or ())


def _certificate_lines(manifest: Manifest) -> list[str]:
    if not manifest.certificates:
        return []
    return [
        "## Certificates",
        "",
        "Proved for new images drawn as the calibration images were: of those that the policy "
        "accepts at most this share is wrong, and of all at least this share is accepted. Nothing "
        "is promised of shifted or unfamiliar images, or of a single class.",
        "",
        "| policy | error among accepted | accepted | confidence | calibration images "
        "| accepted of them | wrong |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {name} | at most {_percent(each.target_risk)} | at least "
            f"{_percent(each.coverage_bound)} | {PERCENT * each.confidence:g} % "
            f"| {each.calibration_size:,} | {each.accepted:,} | {each.errors} |"
            for name, each in manifest.certificates.items()
        ),
        "",
    ]


def _alpha(policy: Policy) -> str:
    if policy.alpha_confidence is not None:
        return f"{policy.alpha:g}, with confidence {PERCENT * policy.alpha_confidence:g} %"
    return f"{policy.alpha:g}, in each class" if policy.conditional_on else f"{policy.alpha:g}"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{PERCENT * share:.2f} %"
