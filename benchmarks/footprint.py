"""What the service takes: seconds from start to ready, and resident memory, before and under load.

    python -m benchmarks.footprint [BUNDLE]

Starts the service as a process of its own, several times; the first start warms the disk cache and
is not counted. Memory is read from /proc, so Linux only.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import httpx
import typer

from benchmarks.machine import describe

STARTS = 5
REQUESTS = 500
PATIENCE_SECONDS = 60.0
SAMPLE = Path("docs/samples/seven.png")


def main(
    bundle: Annotated[Path, typer.Argument()] = Path("models/pretrained/mnist"),
) -> None:
    """Print the medians and the largest value of each."""
    image = SAMPLE.read_bytes()
    seconds, idle, loaded = [], [], []
    for start in range(STARTS + 1):
        began = time.perf_counter()
        with _service(bundle) as (process, client):
            while not _is_ready(client):
                if time.perf_counter() - began > PATIENCE_SECONDS or process.poll() is not None:
                    raise SystemExit("the service did not become ready")
                time.sleep(0.01)
            elapsed = time.perf_counter() - began
            before = _resident_megabytes(process.pid)
            for _ in range(REQUESTS):
                client.post(
                    "/predict", content=image, headers={"Content-Type": "image/png"}
                ).raise_for_status()
            after = _resident_megabytes(process.pid)
        if start:
            seconds.append(elapsed)
            idle.append(before)
            loaded.append(after)
    print(f"{STARTS} starts, {describe('onnxruntime', 'fastapi')}\n")
    print("| | median | largest |\n|---|---|---|")
    for name, values in (
        ("start to ready (s)", seconds),
        ("resident memory when ready (MB)", idle),
        (f"resident memory after {REQUESTS} requests (MB)", loaded),
    ):
        print(f"| {name} | {statistics.median(values):.2f} | {max(values):.2f} |")


@contextmanager
def _service(bundle: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    port = _free_port()
    options = {"bundle": bundle, "port": port, "device": "cpu", "drain-seconds": 0}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--log-level", "warning", *flags]
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield process, client
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _resident_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("no VmRSS in /proc: this benchmark needs Linux")


if __name__ == "__main__":
    typer.run(main)
