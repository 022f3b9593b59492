"""How many members decisions take, and how often they differ, as the ensemble grows.

    python -m benchmarks.members --run RUN [--members M ...] [--data-dir DATA]
    python -m benchmarks.members --bundle BUNDLE [--data-dir DATA]

RUN is a run directory of `python -m training`, of which the first M of its samples, in the order in
which they are chosen, are an ensemble. Each is calibrated and certified by the recipe's default
policy. A bundle is taken as it is.

Traffic: the test images, and 5 % images of the first foreign set. A decision differs if its
acceptance does, or the label of what is accepted, or, of an image that is not flagged, the label in
mode `exact`, which promises it. By training images, of which there are 20,000, `settled_at` may be
chosen; the bound of a confident policy is of calibration images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from benchmarks.machine import describe
from models import bundle as bundles
from models.bundle import Bundle
from models.calibration import Calibration
from models.outputs import Outputs
from models.policy import MembersMode, Policy
from models.preprocessing import grey, prepare
from models.settling import serve
from training import detection
from training.baselines.judge import member_outputs
from training.calibrate import calibrate
from training.certify import certify_policies
from training.data import Dataset, data_directory, load
from training.evaluate import Answers, Decisions, Labels
from training.export import open_ensemble
from training.members import select
from training.metrics import negative_log_likelihood
from training.recipe import Agreement, CertifiedPolicy
from training.run import Run
from training.settling import count_differing

MODES: tuple[MembersMode, ...] = ("all", "exact", "confident")
COLUMNS = (
    "τ",
    "members of traffic",
    "of familiar",
    "of foreign",
    "familiar accepted (%)",
    "NLL of familiar (nats)",
    "decisions that differ",
    "bound (%)",
    "training images that differ",
)
FOREIGN_SHARE = 0.05
TRAINING_IMAGES = 20_000
ANY = Agreement(rate=0.999)
SIZES = [8, 32, 128]


def main(
    run: Annotated[Path | None, typer.Option(help="Run directory.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle.")] = None,
    members: Annotated[list[int], typer.Option(help="Sizes of the ensemble.")] = SIZES,
    data_dir: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Print one row for each size and mode, in Markdown."""
    if (run is None) == (bundle is None):
        raise SystemExit("error: give either --run or --bundle")
    print(f"{describe('torch')}\n\n| M, mode | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    if run is not None:
        _print_run(run, members, data_directory(data_dir))
    if bundle is not None:
        _print_bundle(bundles.load(bundle), data_directory(data_dir))


def _print_bundle(bundle: Bundle, data_dir: Path) -> None:
    manifest = bundle.manifest
    policy, count = manifest.policies["default"], manifest.members.count
    ensemble = open_ensemble(bundle.path / bundles.GRAPH, manifest.members.group)
    tested, unfamiliar = (
        load(next(part.name for part in manifest.data if part.role == role), "test", data_dir)
        for role in ("test", "ood")
    )
    familiar, foreign = (
        Answers.seen(part.images, manifest.input, ensemble, bundle.detectors)
        for part in (tested, _share(unfamiliar, len(tested), manifest.calibration.seed))
    )
    for mode in MODES:
        if mode == "confident" and policy.members != mode:
            continue
        figures = _figures(bundle.calibration, policy, mode, tested.labels, familiar, foreign)
        bound = manifest.agreements["default"].bound if mode == "confident" else 0.0
        _print_row(count, mode, policy, figures, bound, "")


def _share(foreign: Dataset, familiar: int, seed: int) -> Dataset:
    """As many foreign images as make 5 % of the traffic, at random."""
    count = round(familiar * FOREIGN_SHARE / (1 - FOREIGN_SHARE))
    return foreign.select(np.random.default_rng(seed).permutation(len(foreign))[:count])


def _print_run(run: Path, members: list[int], data_dir: Path) -> None:
    opened = Run.open(run, data_dir)
    levels = opened.recipe.policies["default"]
    if not isinstance(levels, CertifiedPolicy) or levels.members != "confident":
        raise SystemExit(f"error: {run}: its default policy is not certified and confident")
    answers = _answers(opened, max(members))
    labels = opened.problem.calibration.labels
    for size in sorted(members):
        known, trained, familiar, foreign = (answer(size) for answer in answers)
        certificate = certify_policies({"default": levels}, known, labels, opened.recipe.score)
        policy = levels.policy(certificate["default"].threshold)
        agreement = count_differing(policy, opened.recipe.agreement, known)
        calibration = calibrate(opened.recipe.score, known)
        seen = count_differing(policy, ANY, trained).differing
        for mode in MODES:
            figures = _figures(
                calibration, policy, mode, opened.problem.test.labels, familiar, foreign
            )
            bound, differing = (agreement.bound, seen) if mode == "confident" else (0.0, 0)
            _print_row(size, mode, policy, figures, bound, f"{differing}")


def _print_row(
    size: int, mode: MembersMode, policy: Policy, figures: list[str], bound: float, differing: str
) -> None:
    cells = [f"{policy.min_probability:g}", *figures, f"{100 * bound:.3f}", differing]
    print(f"| {size}, {mode} | {' | '.join(cells)} |")


def _answers(run: Run, size: int) -> tuple[Callable[[int], Answers], ...]:
    """Answers by the first M of `size` members, by M.

    On calibration, training, test and foreign images.
    """
    problem, spec, group = run.problem, run.problem.input, run.recipe.group
    images, labels = problem.tensors(problem.validation)
    seen = run.samples.probabilities(images)[:, :, : len(labels) // 2]
    chosen = select(size, seen, group, run.samples.weights)
    positions = torch.from_numpy(run.samples.positions(chosen))

    def outputs(prepared: NDArray[np.float32], count: int = size) -> Outputs:
        batch = torch.from_numpy(prepared)
        return member_outputs(problem.network, group, positions[:count], batch)

    first_group = partial(outputs, count=group)
    fitted = detection.fit(problem.train, spec, first_group, run.recipe.seed).detectors

    def answer(dataset: Dataset) -> Callable[[int], Answers]:
        prepared, _ = prepare(dataset.images, spec)
        found, pixels = outputs(prepared), grey(prepared, spec)

        def by_first(members: int) -> Answers:
            theirs = Outputs(found.logits[:, :members], found.features)
            return Answers.detected(theirs, pixels, fitted)

        return by_first

    foreign = run.foreign(run.recipe.data.ood[0])
    trained = problem.train.select(np.arange(min(TRAINING_IMAGES, len(problem.train))))
    share = _share(foreign, len(problem.test), run.recipe.seed)
    sets = (problem.calibration, trained, problem.test, share)
    return tuple(answer(each) for each in sets)


def _figures(
    calibration: Calibration, policy: Policy, mode: MembersMode, labels: Labels, *traffic: Answers
) -> list[str]:
    asked, everyone = policy if mode == "confident" else policy.asking(mode), policy.asking("all")
    decided = [answers.decide(calibration, asked) for answers in traffic]
    by_all = [answers.decide(calibration, everyone) for answers in traffic]
    differing = sum(
        int(_differ(one, other, mode).sum()) for one, other in zip(decided, by_all, strict=True)
    )
    members = [each.members for each in decided]
    familiar = traffic[0]
    nobody = np.zeros(len(labels), dtype=np.bool_)
    served = serve(asked, familiar.totals, familiar.group, nobody)
    return [
        f"{np.concatenate(members).mean():.2f}",
        *(f"{each.mean():.2f}" for each in members),
        f"{100 * decided[0].accepted.mean():.2f}",
        f"{negative_log_likelihood(served.probabilities, labels):.4f}",
        f"{differing} of {sum(map(len, members)):,}",
    ]


def _differ(one: Decisions, other: Decisions, mode: MembersMode) -> NDArray[np.bool_]:
    flagged = np.array(["ood" in reasons for reasons in other.reasons])
    label = one.classes != other.classes
    matters = ~flagged if mode == "exact" else other.accepted
    differ: NDArray[np.bool_] = (one.accepted != other.accepted) | (label & matters)
    return differ


if __name__ == "__main__":
    typer.run(main)
