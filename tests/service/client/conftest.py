"""The real service, and servers that do as a test says, each in a thread of this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import pytest
import uvicorn

from service.app import create_app
from service.repository import Model
from service.settings import Settings

Handle = Callable[[socket.socket, int], None]


@pytest.fixture(scope="session")
def gate_url(settings: Settings, model: Model) -> Iterator[str]:
    """The address of a service with the tiny bundle."""
    limits: dict[str, Any] = {"max_images_per_request": 256, "max_queue_images": 512}
    app = create_app(settings.model_copy(update=limits), model)
    config = uvicorn.Config(app, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@contextmanager
def _serving(handle: Handle) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket, number: int) -> None:
        with connection, suppress(OSError):
            handle(connection, number)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                thread = threading.Thread(target=serve, args=(connection, len(connections)))
                connections.append(connection)
                threads.append(thread)
                thread.start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


@pytest.fixture
def serving() -> Callable[[Handle], AbstractContextManager[str]]:
    """Start a server: `handle(socket, n)` is called for the n-th connection, in its own thread."""
    return _serving
