"""Tell a file of a named set from a damaged or different one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from training.data.dataset import DataError
from training.data.idx import content_sha256, read_idx
from training.data.sources import SourceFile


def verify(path: Path, source: SourceFile) -> None:
    """Check a file's bytes against the digest pinned for it.

    An IDX file also passes when only its compression differs: its uncompressed content is what is
    pinned then.

    Raises:
        DataError: the checksum differs, or the file cannot be read. Names the file and both
            checksums.
    """
    digest = hashlib.new(source.algorithm, usedforsecurity=source.algorithm != "md5")
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the path") from error
    if digest.hexdigest() == source.digest or _same_content(path, source):
        return
    raise DataError(
        f"{path} has {source.algorithm} {digest.hexdigest()}, not {source.digest}: delete it to "
        "have it downloaded again, or replace it"
    )


def _same_content(path: Path, source: SourceFile) -> bool:
    if not source.content_sha256:
        return False
    try:
        return content_sha256(read_idx(path)) == source.content_sha256
    except DataError:
        return False
