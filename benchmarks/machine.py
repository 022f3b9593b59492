"""The machine that a figure was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path


def describe(*libraries: str) -> str:
    """Processor, cores, Python and the versions of the libraries that matter, on one line."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in libraries]
    python = f"Python {platform.python_version()}"
    return ", ".join([f"{_processor()}, {os.cpu_count()} cores", python, *versions])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
