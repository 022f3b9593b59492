"""The servers that are measured: how each is started, and what it is called."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving.processes import end

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 90.0
QUIET = {
    "BENTOML_DO_NOT_TRACK": "True",
    "OMP_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONPATH": str(ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",
}


class ServerError(Exception):
    """A server that cannot be installed, started or driven; the message says why in one line."""


@dataclass(frozen=True)
class Server:
    """One server; {0}, {1} and {2} in its command and environment stand for free ports."""

    name: str
    command: Sequence[str]
    path: str = "/predict"
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""


@dataclass(frozen=True)
class Running:
    """A server that answers on a port of this machine."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def ours(bundle: Path, python: Path) -> list[Server]:
    """Our service: as it is, with adaptivity off, and with the whole ensemble's exact answer."""
    options = {"bundle": bundle, "port": "{0}", "device": "cpu", "drain-seconds": 0}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [str(python), "-m", "service", "serve", "--log-level", "warning", *flags]
    return [
        Server("langevin gate", command),
        Server("langevin gate, all members", command, "/predict?members=all"),
        Server("langevin gate, exact", command, "/predict?members=exact"),
    ]


def limits(answer: Path, python: Path) -> list[Server]:
    """uvicorn alone; `answer` is a file with what the service answered once."""
    command = [str(python), "-m", "benchmarks.serving.limits"]
    return [
        Server("uvicorn: PNG decoded, answer canned", [*command, "canned", "{0}", str(answer)]),
        Server("uvicorn: hello", [*command, "hello", "{0}"]),
    ]


@contextmanager
def running(server: Server, cpus: str, request: bytes) -> Iterator[Running]:
    """Run a server on some of the CPUs until the end of the block, from its first good answer on.

    Raises:
        ServerError: it ended, or did not answer `request` with 200 in 90 s.
    """
    ports = _free_ports(3)
    settings = {name: value.format(*ports) for name, value in server.environment.items()}
    command = ["taskset", "-c", cpus, *(part.format(*ports) for part in server.command)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **QUIET, **settings},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        try:
            _await_answer(process, ports[0], request, log)
            yield Running(ports[0])
        finally:
            end(process)


def answer(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to one request.

    Raises:
        OSError: there is none.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection, method="POST")
        try:
            response.begin()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise OSError(f"no HTTP answer: {error!r}") from error


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _await_answer(process: subprocess.Popen[bytes], port: int, request: bytes, log: Path) -> None:
    latest = time.monotonic() + READY_SECONDS
    said = "no answer"
    while time.monotonic() < latest:
        if process.poll() is not None:
            raise ServerError(f"ended: {last_line(log.read_text(errors='replace'))}")
        with suppress(OSError):
            status, body = answer(port, request)
            if status == http.client.OK:
                return
            said = f"status {status}: {last_line(body.decode(errors='replace'))}"
            if 400 <= status < 500 and status != http.client.NOT_FOUND:
                break
        time.sleep(0.1)
    raise ServerError(f"not ready: {said}")


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
