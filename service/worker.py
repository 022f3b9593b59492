"""A worker: one process of several, which serves its parent's socket until it is told to stop."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import uvicorn

from service.app import create_app
from service.errors import StartupError
from service.gate import Gate
from service.logs import log_to_stderr
from service.repository import open_model
from service.server import DrainingServer, configure
from service.settings import Settings
from service.shared_metrics import share_values, sums
from service.workers import RELOAD, SIGNALS, Failed, Ready

MARGIN_SECONDS = 5.0


def work(
    place: int,
    pause: float,
    settings: Settings,
    listener: socket.socket,
    directory: Path,
    parent: Connection,
) -> None:
    """Open the model and serve, after `pause` seconds; tell `parent` when ready, or why not."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    log_to_stderr(settings.log_level, f"worker {place} ")
    time.sleep(pause)
    share_values(place, directory)
    try:
        app = create_app(settings, open_model(settings))
        app.state.metrics.registry = sums(directory)
        server = WorkerServer(configure(app, settings), settings.drain_seconds, parent)
        limit = settings.drain_seconds + settings.shutdown_timeout_seconds + MARGIN_SECONDS
        threading.Thread(target=_obey, args=(parent, server, limit), daemon=True).start()
        server.run([listener])
    except StartupError as error:
        parent.send(Failed(str(error)))
        sys.exit(1)


class WorkerServer(DrainingServer):
    """A server that does what its parent says, and leaves signals alone.

    A Ctrl-C, or a stop of a whole group of processes, reaches both: what the parent then says would
    be the second signal.
    """

    def __init__(self, config: uvicorn.Config, drain_seconds: float, parent: Connection) -> None:
        super().__init__(config, drain_seconds, lambda text: parent.send(Ready(text)))

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Write down, ten times a second, what a scrape of another worker is to see."""
        gate: Gate = self.config.app.state.gate  # type: ignore[union-attr]
        gate.metrics.add_up()
        gate.metrics.queue_images.set(gate.scheduler.queued)
        return await super().on_tick(counter)


def _obey(parent: Connection, server: WorkerServer, limit: float) -> None:
    """Do what the parent says, and stop when it is killed; stopping may take `limit` seconds."""
    try:
        while (number := parent.recv()) == RELOAD:
            server.reload()
        server.handle_exit(number, None)
    except (EOFError, OSError):
        server.handle_exit(signal.SIGTERM, None)
    time.sleep(limit)
    os._exit(1)
