"""New connections: all that wait, in every turn of the event loop.

libuv, and so uvloop, accepts one connection a turn (libuv pull request 3696). With an inference
step in every turn, that is a few dozen a second: under overload, connections would wait in the
kernel until their clients give up, and no one would be told to come again later.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

# In one turn; more wait for the next.
MOST = 1024


class Acceptor:
    """Accepts the connections of a listening socket, beside the server that listens."""

    def __init__(
        self, listening: socket.socket, make_protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._make_protocol = make_protocol
        self._socket = listening.dup()
        self._socket.setblocking(False)
        self._tasks: set[asyncio.Task[object]] = set()
        self._loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        """Accept no more."""
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _accept(self) -> None:
        for _ in range(MOST):
            try:
                connection, _address = self._socket.accept()
            except OSError:  # there is none any more, it is gone already, or too many are open
                return
            connection.setblocking(False)
            connected = self._loop.connect_accepted_socket(self._make_protocol, connection)
            task: asyncio.Task[object] = self._loop.create_task(connected)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
