"""The command line's server, as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass
class Server:
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        pytest.fail(f"no line {pattern!r} in {self.lines}")

    def finish(self) -> int:
        assert self.process.stderr is not None
        self.lines += self.process.stderr.readlines()
        return self.process.wait(timeout=30)


@contextmanager
def server(bundle: Path, *flags: str, prelude: str = "", **variables: str) -> Iterator[Server]:
    """A server that has announced itself, in a process group of its own."""
    start = f"{prelude}\nimport sys\nfrom service.cli import main\nmain()"
    command = [sys.executable, "-W", "error", "-c", start, "serve", "--port", "0"]
    command += ["--bundle", str(bundle), "--threads", "1", *flags]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GATE_")} | variables
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    started = Server(process)
    try:
        started.url = started.wait_for_line(r"at (http://127\.0\.0\.1:\d+);")[1]
        yield started
    finally:
        process.kill()
        process.communicate()
