"""Fetch one published file from the first mirror that gives its exact bytes."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from training.data.checksum import verify
from training.data.dataset import DataError
from training.data.sources import SourceFile

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
"""Seconds without progress before a mirror is given up."""

MAX_SECONDS = 1800.0
"""Seconds that one mirror may take for one file, however steadily it sends."""


def download(source: SourceFile, destination: Path) -> None:
    """Fetch a file, trying its mirrors in order, and put it in place in one step.

    The bytes go to a temporary name beside the destination, which is renamed only once the
    checksum is right: the destination is never there in part. A mirror that fails, is too slow,
    sends more than twice the published size or sends other bytes is passed over. Shows progress on
    standard error if that is a terminal.

    Args:
        source: the file, its checksum and its mirrors.
        destination: where it shall lie; missing folders are made.

    Raises:
        DataError: no mirror gave the file (says why for each), or it cannot be written.
    """
    failures: list[str] = []
    for url in source.urls:
        try:
            _from_mirror(url, source, destination)
        except (httpx.HTTPError, httpx.InvalidURL, DataError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            failures.append(f"{url}: {reason}")
        except OSError as error:
            raise DataError(
                f"{destination} cannot be written ({error.strerror}): choose another data directory"
            ) from error
        else:
            return
    raise DataError(
        f"{source.path} could not be downloaded: check the network or place the file at "
        f"{destination} ({'; '.join(failures)})"
    )


def _from_mirror(url: str, source: SourceFile, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{destination.name}.", suffix=".part", dir=destination.parent
    )
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in _chunks(url, source):
                file.write(chunk)
        try:
            verify(temporary, source)
        except DataError as error:
            raise DataError("sent other bytes than the published file") from error
        temporary.chmod(0o644)
        temporary.replace(destination)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _chunks(url: str, source: SourceFile) -> Iterator[bytes]:
    """The body as the server holds it, without undoing any compression."""
    limit = 2 * source.size
    deadline = time.monotonic() + MAX_SECONDS
    received = 0
    headers = {"Accept-Encoding": "identity"}
    with (
        httpx.Client(timeout=TIMEOUT, follow_redirects=True, headers=headers) as client,
        client.stream("GET", url) as response,
        _progress() as progress,
    ):
        response.raise_for_status()
        task = progress.add_task(source.path, total=source.size)
        for chunk in response.iter_raw():
            received += len(chunk)
            if received > limit:
                raise DataError(f"sent more than {limit} bytes")
            if time.monotonic() > deadline:
                raise DataError(f"took more than {MAX_SECONDS:.0f} s")
            progress.update(task, completed=received)
            yield chunk


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
