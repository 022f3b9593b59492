"""`python -m training`: a whole run, or one stage of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from models.bundle import BundleError, load, read_manifest, resolve
from models.conformal import CalibrationError
from models.manifest import Verdict
from models.networks import NetworkError
from training import chains, data
from training import recipe as recipes
from training.baselines import MethodError, run_baselines
from training.certify import CertifyError, proof_table, prove_again
from training.checkpoint import ChainError, path_of
from training.export import ExportError
from training.posterior import PriorError
from training.reference import ComparisonError, compare_hmc
from training.run import Run, RunError
from training.settling import AgreementError
from training.twin_run import run_twin
from training.twin_table import tables

app = typer.Typer(
    help="Draw an ensemble of network weights from the Bayesian posterior, and publish it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(markup=False)

RecipeName = Annotated[str, typer.Argument(help="Name of a recipe, or path of a .toml file.")]
RunPath = Annotated[Path, typer.Argument(help="Run directory.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder with data sets; GATE_DATA_DIR, or a cache folder, by default."),
]
Out = Annotated[Path | None, typer.Option(help="Run directory; runs/RECIPE by default.")]
Chains = Annotated[
    int | None, typer.Option(min=1, help="Number of chains, instead of the recipe's.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed, instead of the recipe's.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Chains run side by side; all cores.")]

FAILURES = (
    AgreementError,
    BundleError,
    CalibrationError,
    CertifyError,
    ComparisonError,
    ExportError,
    MethodError,
    NetworkError,
    PriorError,
    RunError,
    ChainError,
    data.DataError,
    recipes.RecipeError,
    OSError,
)
INTERRUPTED = 130  # what typer makes of KeyboardInterrupt


def main() -> None:
    """Run the command line; failures are one line on stderr and exit code 1."""
    try:
        app()
    except FAILURES as failure:
        typer.echo(f"error: {failure}", err=True)
        sys.exit(1)
    except SystemExit as ending:
        if ending.code == INTERRUPTED:
            typer.echo("stopped; the same command resumes", err=True)
        raise


@app.command()
def run(
    recipe: RecipeName,
    data_dir: DataDir = None,
    out: Out = None,
    chains: Chains = None,
    seed: Seed = None,
    workers: Workers = None,
) -> None:
    """Do everything: sample, diagnose, export, calibrate, evaluate, publish."""
    current = _create(recipe, data_dir, out, chains, seed)
    _sample(current, workers)
    _diagnose(current)
    _export(current)
    _calibrate(current)
    _evaluate(current)
    _publish(current)


@app.command()
def sample(
    recipe: RecipeName,
    data_dir: DataDir = None,
    out: Out = None,
    chains: Chains = None,
    seed: Seed = None,
    workers: Workers = None,
) -> None:
    """Draw posterior samples; resumes a run that was stopped."""
    _sample(_create(recipe, data_dir, out, chains, seed), workers)


@app.command()
def diagnose(run: RunPath, data_dir: DataDir = None) -> None:
    """Judge the chains: temperature, R-hat, effective draws; exit code 3 if they do not pass."""
    if not _diagnose(_open(run, data_dir)).verified:
        raise typer.Exit(3)


@app.command()
def export(run: RunPath, data_dir: DataDir = None) -> None:
    """Write the ensemble graph, and compare it with torch."""
    _export(_open(run, data_dir))


@app.command()
def calibrate(run: RunPath, data_dir: DataDir = None) -> None:
    """Score the held-out calibration images, and prove on them what the recipe asks for."""
    _calibrate(_open(run, data_dir))


@app.command()
def evaluate(run: RunPath, data_dir: DataDir = None) -> None:
    """Measure quality on the test set, and on unfamiliar sets."""
    _evaluate(_open(run, data_dir))


@app.command()
def publish(run: RunPath, data_dir: DataDir = None) -> None:
    """Write the report and publish the bundle."""
    _publish(_open(run, data_dir))


@app.command()
def baselines(
    run: RunPath,
    data_dir: DataDir = None,
    members: Annotated[int, typer.Option(min=1, help="Networks in the deep ensemble.")] = 32,
    methods: Annotated[
        str | None,
        typer.Option(help="Methods by name, with commas between, instead of MAP and ensemble."),
    ] = None,
    workers: Workers = None,
) -> None:
    """Train baselines at the run's cost, and judge them as the run is judged."""
    current = _open(run, data_dir)
    chosen = tuple(methods.split(",")) if methods else ()
    with _progress() as follow:
        results = run_baselines(current, members, workers, follow, chosen)
    _show_quality({name: result["test"] for name, result in results.items()})


@app.command("hmc-twin")
def hmc_twin(
    recipe: RecipeName,
    data_dir: DataDir = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the twin; runs/RECIPE-twin by default.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Judge a recipe's sampler by full-batch HMC, on a small twin; exit code 3 if it fails."""
    current = recipes.load(recipe)
    folder = out or Path("runs") / f"{current.name}-twin"
    processes = workers or os.cpu_count() or 1
    result = run_twin(current, data.data_directory(data_dir), folder, processes, _say)
    for table in tables(result.figures):
        console.print(table)
    for name, check in result.verdict.checks.items():
        word = "pass" if check.passed else "FAIL"
        _say(f"{word}  {name} {check.value:g}, accepted {check.accepted}")
    if not result.verdict.verified:
        raise typer.Exit(3)


@app.command("compare-hmc")
def compare_with_hmc(
    bundle: Annotated[Path, typer.Argument(help="A CIFAR-10 bundle.")], data_dir: DataDir = None
) -> None:
    """Compare a CIFAR-10 bundle with the HMC reference of the NeurIPS 2021 competition."""
    threads = os.cpu_count() or 1
    result = compare_hmc(load(bundle), data.data_directory(data_dir), threads)
    table = Table("CIFAR-10 test", "accuracy", "NLL (nats)", "ECE", "predictive entropy (nats)")
    for side in ("bundle", "hmc"):
        row = result[side]
        figures = (f"{row[key]:.4f}" for key in ("nll", "ece", "predictive_entropy"))
        table.add_row(side, f"{100 * row['accuracy']:.2f} %", *figures)
    console.print(table)
    _say(
        f"agreement {100 * result['agreement']:.2f} %, "
        f"total variation {result['total_variation']:.4f}"
    )


@app.command()
def certify(
    bundle: Annotated[Path, typer.Argument(help="Bundle.")],
    data_dir: DataDir = None,
    folder: Annotated[
        Path | None, typer.Option(help="The recipe's data, if they are a folder of images.")
    ] = None,
) -> None:
    """Prove a bundle's certificates again from its data; exit code 3 if one does not hold."""
    threads = os.cpu_count() or 1
    proofs = prove_again(load(bundle), data.data_directory(data_dir), folder, threads)
    console.print(proof_table(proofs))
    if not all(proof.holds for proof in proofs.values()):
        raise typer.Exit(3)


@app.command()
def inspect(path: Annotated[Path, typer.Argument(help="Run directory or bundle.")]) -> None:
    """Print what a run directory or a bundle holds, verifying a bundle's files."""
    if (path / "recipe.json").exists():
        _inspect_run(path)
        return
    bundle = load(path)
    manifest = bundle.manifest
    console.print(f"{manifest.name} {manifest.version}  sha256:{bundle.digest}")
    console.print(
        f"{manifest.members.count} members, {manifest.network.num_weights:,} weights each"
    )
    console.print(f"labels: {', '.join(manifest.labels)}")
    for part in manifest.data:
        console.print(f"{part.role}: {part.name} {part.part}, {part.size:,} images")
    _show_verdict(manifest.verdict)
    _show_quality({"ensemble": manifest.results["test"]})


def _create(
    name: str, data_dir: Path | None, out: Path | None, chains: int | None, seed: int | None
) -> Run:
    recipe = recipes.load(name)
    if chains is not None:
        recipe = recipes.change(recipe, {"sampler": {"chains": chains}})
    if seed is not None:
        recipe = recipes.change(recipe, {"seed": seed})
    return Run.create(recipe, out or Path("runs") / recipe.name, data.data_directory(data_dir))


def _open(path: Path, data_dir: Path | None) -> Run:
    return Run.open(path, data.data_directory(data_dir))


@contextmanager
def _progress() -> Iterator[Callable[[chains.Progress], None]]:
    """A bar for each chain, with the time left; where there is no terminal, a line each tenth."""
    if not console.is_terminal:
        yield _print_tenths
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs, NLL {task.fields[nll]}"),
        TimeRemainingColumn(),
        console=console,
    ) as bars:
        tasks: dict[int, Any] = {}

        def follow(step: chains.Progress) -> None:
            if step.chain not in tasks:
                tasks[step.chain] = bars.add_task(
                    f"chain {step.chain}", total=step.epochs, completed=step.epoch - 1, nll=""
                )
            bars.update(tasks[step.chain], completed=step.epoch, nll=f"{step.nll:.4f}")

        yield follow


def _print_tenths(step: chains.Progress) -> None:
    if step.epoch * 10 // step.epochs > (step.epoch - 1) * 10 // step.epochs:
        console.print(
            f"chain {step.chain}: {step.epoch}/{step.epochs} epochs, NLL {step.nll:.4f}",
            highlight=False,
        )


def _sample(run: Run, workers: int | None) -> None:
    with _progress() as follow:
        run.sample(workers, follow)
    console.print(f"samples in {run.path / 'chains'}")


def _diagnose(run: Run) -> Verdict:
    verdict = run.diagnose()
    _show_verdict(verdict)
    return verdict


def _export(run: Run) -> None:
    console.print(
        f"ensemble graph: onnxruntime and double precision differ by {run.export():.1e} at most"
    )


def _calibrate(run: Run) -> None:
    run.calibrate()
    console.print(f"calibrated on {run.recipe.data.calibration:,} random held-out images")
    for name, certificate in run.certificates.items():
        _say(
            f"{name}: certified, at most {100 * certificate.target_risk:g} % errors with "
            f"confidence {certificate.confidence:g}, from probability {certificate.threshold:g} "
            f"on; accepts {100 * certificate.coverage:.2f} %"
        )
    if (sets := run.prediction_sets) is not None:
        _say(f"prediction sets: {sets.score}, coverage {sets.coverage:g}, up to {sets.threshold:g}")


def _evaluate(run: Run) -> None:
    _show_quality({"ensemble": run.evaluate()["test"]})


def _publish(run: Run) -> None:
    path = run.publish()
    _, digest = read_manifest(path)
    console.print(f"published {path}  sha256:{digest}", soft_wrap=True)


def _inspect_run(path: Path) -> None:
    run = Run.open(path, data.data_directory(None))
    sampler = run.recipe.sampler
    console.print(f"run of {run.recipe.name}: {sampler.chains} chains × {sampler.samples} samples")
    for chain in range(sampler.chains):
        file = path_of(path, chain)
        console.print(f"{file}: {'present' if file.exists() else 'not begun'}")
    for name in ("diagnostics.json", "evaluation.json"):
        console.print(f"{name}: {'present' if (path / name).exists() else 'missing'}")
    if (diagnostics := path / "diagnostics.json").exists():
        _show_verdict(Verdict.model_validate(json.loads(diagnostics.read_text())["verdict"]))
    if run.published.exists():
        console.print(f"published: {resolve(run.published)}")


def _say(line: str) -> None:
    console.print(line, highlight=False)


def _show_verdict(verdict: Verdict) -> None:
    table = Table("check", "value", "accepted", "")
    for name, check in verdict.checks.items():
        mark = "" if check.passed else "failed"
        table.add_row(name, f"{check.value:g}", check.accepted, mark)
    console.print(table)
    console.print("verified" if verdict.verified else f"UNVERIFIED: {', '.join(verdict.failed)}")


def _show_quality(rows: dict[str, dict[str, Any]]) -> None:
    table = Table("test set", "accuracy", "member accuracy", "NLL (nats)", "ECE", "Brier")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{100 * row['accuracy']:.2f} %",
            f"{100 * row['member_accuracy']:.2f} %",
            *(f"{row[key]:.4f}" for key in ("nll", "ece", "brier")),
        )
    console.print(table)
