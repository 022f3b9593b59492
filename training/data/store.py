"""The data directory: where files of named sets lie, and how a missing one gets there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from training.data.checksum import verify
from training.data.dataset import DataError
from training.data.download import download
from training.data.sources import SOURCES


def data_directory(option: Path | None = None) -> Path:
    """Where data lies: the option, else `GATE_DATA_DIR`, else the user's cache.

    The cache is `langevin-gate/data` in `XDG_CACHE_HOME`, or in `~/.cache` where that is not set.
    The directory need not exist.

    Args:
        option: what the user gave for `--data-dir`, if anything. `~` is expanded.
    """
    if option is not None:
        return option.expanduser()
    if from_environment := os.environ.get("GATE_DATA_DIR"):
        return Path(from_environment).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        cache = Path("~/.cache").expanduser()
    return cache / "langevin-gate" / "data"


@dataclass(frozen=True)
class Store:
    """Files of named sets in one directory, laid out as `<set>/<file>`.

    Attributes:
        directory: the data directory.
        may_download: whether a missing file is fetched from its publisher.
    """

    directory: Path
    may_download: bool = True

    def has(self, *names: str) -> bool:
        """Whether all these files lie in the directory; says nothing about their content."""
        return all(_exists(self.directory / name) for name in names)

    def get(self, name: str) -> Path:
        """The path of a file whose checksum is right, downloaded first if it is missing.

        Args:
            name: a key of `SOURCES`, `<set>/<file>`.

        Raises:
            DataError: wrong checksum, unreadable, or missing and not to be had.
        """
        source = SOURCES[name]
        path = self.directory / name
        if _exists(path):
            verify(path, source)
        elif not source.urls:
            raise DataError(
                f"{path} is missing and nobody publishes it in this form: place it there or choose "
                "another data directory"
            )
        elif not self.may_download:
            raise DataError(
                f"{path} is missing: allow the download from {source.urls[0]} or place it there"
            )
        else:
            download(source, path)
        return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the path") from error
