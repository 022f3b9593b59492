"""The command line: serve, predict, check, health, openapi.

What a command needs is imported when it runs, so that `health` starts quickly.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.errors import GateError, StartupError
from service.logs import log_to_stderr
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from service.repository import Model
    from service.results import Json

cli = typer.Typer(
    help="Langevin Gate: an image classifier that can say “I don't know”.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; an error is one line on stderr and a status other than 0."""
    try:
        cli()
    except (StartupError, GateError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


def _options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each of these settings and `--config`, for its `settings`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command, eval_str=True).parameters
        own = [parameter for name, parameter in parameters.items() if name != "settings"]
        config = Annotated[Path | None, typer.Option(help="TOML file with settings [GATE_CONFIG].")]
        flags = [*map(_parameter, names), _keyword("config", config)]

        def run(**values: Any) -> None:
            arguments = {parameter.name: values.pop(parameter.name) for parameter in own}
            file = values.pop("config")
            chosen = {name: value for name, value in values.items() if value is not None}
            command(**arguments, settings=load_settings(chosen, file))

        run.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        return run

    return decorate


def _parameter(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    default = "" if name == "bundle" else f", default {field.default}"
    description = f"{field.description} [GATE_{name.upper()}{default}]"
    kind: Any = field.annotation
    return _keyword(name, Annotated[kind | None, typer.Option(help=description)])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


ENGINE = ("bundle", "device", "runtime", "threads", "allow_unverified")


@cli.command()
@_options(*Settings.model_fields)
def serve(*, settings: Settings) -> None:
    """Serve a bundle over HTTP."""
    log_to_stderr(settings.log_level)
    if settings.workers > 1:
        from service.workers import serve_with_workers

        serve_with_workers(settings)
        return
    from service.app import create_app
    from service.repository import open_model
    from service.server import run

    run(create_app(settings, open_model(settings)), settings)


@cli.command()
@_options(*ENGINE, "policy", "max_pixels")
def predict(
    files: Annotated[list[Path], typer.Argument(help="Image files; - reads standard input.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, as the service does.")
    ] = False,
    *,
    settings: Settings,
) -> None:
    """Classify image files without a server; the status is 1 if one cannot be read."""
    log_to_stderr("warning")
    from service.offline import answer_files
    from service.repository import open_model

    answer = answer_files(open_model(settings), settings, files)
    if as_json:
        typer.echo(json.dumps(answer, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        _print_table(files, answer["results"])
    if any(result["error"] for result in answer["results"]):
        raise typer.Exit(1)


@cli.command()
@_options(*ENGINE)
def check(*, settings: Settings) -> None:
    """Verify a bundle's digests and its self-test."""
    log_to_stderr("error")
    from service.repository import open_model, self_test

    model = open_model(settings)
    difference = self_test(model)
    for line in _summary(model, difference):
        typer.echo(line)


@cli.command()
def health(
    url: Annotated[str, typer.Option(help="Where the service is.")] = "http://127.0.0.1:8000",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 3.0,
) -> None:
    """Ask a running service whether it is ready; the status is 0 if it is."""
    from service.probe import is_ready

    ready, reason = is_ready(url, timeout)
    typer.echo(reason, err=not ready)
    if not ready:
        raise typer.Exit(1)


@cli.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    from service.app import create_app

    typer.echo(json.dumps(create_app(load_settings()).openapi(), indent=1, ensure_ascii=False))


def _summary(model: Model, difference: float) -> list[str]:
    manifest, runtime = model.manifest, model.runtime
    failed = ", ".join(manifest.verdict.failed)
    channels, height, width = manifest.input.shape
    return [
        f"bundle      {model.bundle.path}",
        f"model       {manifest.name} {manifest.version}",
        f"digest      sha256:{model.bundle.digest}",
        f"verdict     {'verified' if manifest.verdict.verified else f'unverified ({failed})'}",
        f"members     {runtime.members}",
        f"labels      {', '.join(manifest.labels)}",
        f"input       {channels} x {height} x {width}",
        f"policies    {', '.join(manifest.policies)}",
        f"calibration {manifest.calibration.size} images, {manifest.calibration.score}",
        f"runtime     {runtime.name} on {runtime.device}",
        f"self-test   passed: {len(model.bundle.golden.images)} images, outputs within "
        f"{difference:.1e}",
    ]


def _print_table(files: list[Path], results: list[Json]) -> None:
    rows = [("file", "decision", "label", "probability", "entropy", "p-value", "reasons")]
    for file, result in zip(files, results, strict=True):
        if (error := result["error"]) is not None:
            rows.append((str(file), result["decision"], "-", "-", "-", "-", error["detail"]))
            continue
        share = max(result["probabilities"].values())
        rows.append(
            (
                str(file),
                result["decision"],
                result["label"],
                f"{share:.4f}",
                f"{result['uncertainty']['predictive_entropy']:.4f}",
                f"{result['ood']['p_value']:.4f}",
                ", ".join(result["reasons"]) or "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
