"""uvicorn, with a stop that loses no request."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI

from service.acceptor import Acceptor
from service.reload import reload
from service.repository import Model
from service.settings import Settings

YOUNG_OBJECTS = 10_000
SWITCH_SECONDS = 0.0005

log = logging.getLogger("service.server")


class DrainingServer(uvicorn.Server):
    """On SIGTERM /readyz says 503 while the socket still accepts; only then does it stop.

    uvicorn closes its sockets at once, so that requests which a load balancer still sends are
    refused. After a clean stop the exit status is 0; a second signal stops at once, and the
    status is the signal's.
    """

    def __init__(
        self, config: uvicorn.Config, drain_seconds: float, announce: Callable[[str], None]
    ) -> None:
        super().__init__(config)
        self.drain_seconds = drain_seconds
        self.announce = announce
        self._stop_at: float | None = None
        self._told = False
        self._acceptors: list[Acceptor] = []
        self._reload_wanted = False
        self._reloading: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take SIGHUP as the order to reload."""
        with super().capture_signals():
            if sys.platform != "win32" and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGHUP, self.reload)
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain; on a second signal, end it."""
        if self._stop_at is not None:
            super().handle_exit(sig, frame)
            self.force_exit = True
            return
        drain = self.drain_seconds if sig == signal.SIGTERM and self.started else 0.0
        self._stop_at = time.monotonic() + drain
        self.config.app.state.draining = True  # type: ignore[union-attr]

    def reload(self, *_: object) -> None:
        """Look for another bundle soon; if that is being done, then afterwards once more."""
        self._reload_wanted = True

    async def on_tick(self, counter: int) -> bool:
        """Ask, ten times a second, whether to reload, or to stop."""
        if self._reload_wanted and (self._reloading is None or self._reloading.done()):
            self._reload_wanted = False
            app: Any = self.config.app
            self._reloading = asyncio.create_task(reload(app.state, app.state.gate.settings))
        if self._stop_at is not None:
            left = self._stop_at - time.monotonic()
            if not self._told:
                self._told = True
                log.info("draining for %.1f s: /readyz says 503", max(0.0, left))
            if left <= 0:
                log.info("stopping: no new connections, open requests are finished")
                self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say in one line what is served where."""
        await super().startup(sockets)
        if self.started:
            _tune_interpreter()
            if sys.platform != "win32":
                listening = [each for server in self.servers for each in server.sockets]
                self._acceptors = [Acceptor(each, self._make_protocol) for each in listening]
            port = self.servers[0].sockets[0].getsockname()[1]
            self.announce(_announcement(self.config, port))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and finish what was begun."""
        for acceptor in self._acceptors:
            acceptor.close()
        await super().shutdown(sockets)

    def _make_protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def run(app: FastAPI, settings: Settings) -> None:
    """Serve until a signal comes."""
    DrainingServer(configure(app, settings), settings.drain_seconds, log.info).run()


def configure(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """The options of uvicorn for this service."""
    for chatty in ("uvicorn", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return uvicorn.Config(
        app,
        http=_protocol(),
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Those that wait to be accepted wait unseen: no longer than the others may.
        backlog=settings.max_queue_images,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout_seconds)),
    )


def _protocol() -> type[asyncio.Protocol] | Literal["h11"]:
    """What parses HTTP: ours where there is httptools."""
    if sys.platform == "win32":
        return "h11"
    from service.api.express import ExpressProtocol

    return ExpressProtocol


def _tune_interpreter() -> None:
    """Set Python up for many short requests, and threads beside them.

    The garbage collector looks at requests alone, and not after every few of them: what there is by
    now stays for good, and of what a request leaves behind next to nothing is a cycle. And the
    event loop need not wait long for a thread that infers or decodes: by default that may keep
    the interpreter for 5 ms at a time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    sys.setswitchinterval(SWITCH_SECONDS)


def _announcement(config: uvicorn.Config, port: int) -> str:
    model: Model = config.app.state.gate.model  # type: ignore[union-attr]
    reachable = "127.0.0.1" if config.host in ("0.0.0.0", "::", "") else config.host
    host = f"[{reachable}]" if ":" in reachable else reachable
    address = f"http://{host}:{port}"
    engine = f"{model.runtime.name} on {model.runtime.device}"
    workers = f", {config.workers} workers" if config.workers > 1 else ""
    return (
        f"serving {model.bundle.path} (sha256:{model.bundle.digest[:12]}, "
        f"{model.runtime.members} members, {engine}{workers}) "
        f"at {address}; try: curl --data-binary @image.png -H 'Content-Type: image/png' "
        f"{address}/predict"
    )
