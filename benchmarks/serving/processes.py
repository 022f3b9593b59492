"""The processes under this one: what they take, and their end. From /proc, so Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

SET_CHILD_SUBREAPER = 36  # prctl(2)
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """CPU seconds since they started, user and system, and resident memory in MB.

    Memory is summed over processes, so that a page which several of them share counts for each.
    """

    cpu_seconds: float
    megabytes: float


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, so that none of them is lost."""
    if ctypes.CDLL(None, use_errno=True).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def usage() -> Usage:
    """Of all descendants of this process, and of those that they have waited for."""
    fields = _descendants().values()
    ticks = sum(sum(map(int, field[11:15])) for field in fields)
    pages = sum(int(field[21]) for field in fields)
    return Usage(ticks / TICKS, pages * PAGE / 1e6)


def end(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """Ask the process to stop, then kill it and every other descendant of this one."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    for _ in range(100):
        if not (left := _descendants()):
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
        for pid in left.keys() - {process.pid}:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.05)


def _descendants() -> dict[int, list[str]]:
    """Fields 3 and on of /proc/PID/stat, see proc(5), by process."""
    fields = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields[int(file.parent.name)] = file.read_text().rpartition(")")[2].split()
    found: dict[int, list[str]] = {}
    parents = {os.getpid()}
    while parents:
        children = {pid: field for pid, field in fields.items() if int(field[1]) in parents}
        found |= children
        parents = set(children)
    return found
