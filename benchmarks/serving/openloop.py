"""Open loop: requests leave on a schedule, whatever the server does.

A latency counts from the moment a request was due, so that a slow answer does not hide what would
have been asked meanwhile (coordinated omission). One thread, raw sockets and epoll: Linux only.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.servers import ServerError

Array = NDArray[np.float64]

CONNECTIONS = 8_000
HANG_UP = struct.pack("ii", 1, 0)  # at once: no port is kept for two minutes
LOOK_UP = 0.01  # seconds between two looks at what is late
REFUSALS = (429, 503)
IDLE, CLOSED = -1, -2  # in place of the request that a connection carries


@dataclass(frozen=True)
class Outcome:
    """What became of n requests; times in seconds.

    Attributes:
        due: when each was due, [n], from the start.
        lag: from then until it was sent, [n]; NaN if it never was.
        latency: from then until its answer was complete, [n]; NaN if there was none in time.
        status: of the answer, [n]; 0 if there was none.
        retry_after: whether the answer had that header, [n].
    """

    due: Array
    lag: Array
    latency: Array
    status: NDArray[np.int64]
    retry_after: NDArray[np.bool_]


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    request: int
    unsent: bytes
    received: bytes = b""


def arrivals(rate: float, seconds: float, seed: int = 1) -> Array:
    """Moments of a Poisson process of `rate` a second, in increasing order."""
    randomness = np.random.default_rng(seed)
    count = randomness.poisson(rate * seconds)
    return np.sort(randomness.uniform(0, seconds, count))


def drive(
    port: int,
    requests: Sequence[bytes],
    due: Array,
    patience: float,
    connections: int = CONNECTIONS,
) -> Outcome:
    """Send the requests in turn to a port of this machine, each when it is due.

    The client keeps connections alive, opens another when all are busy, and hangs up on a request
    that is not answered within `patience` seconds. One that finds no connection by then, out of
    at most `connections`, is not sent.

    Raises:
        ServerError: an answer has no Content-Length.
    """
    return _Load(port, requests, due, patience, connections).run()


def figures(outcome: Outcome, patience: float, seconds: float) -> dict[str, float | None]:
    """Latency, goodput and refusals of one measurement.

    A request that was not answered with 200 counts as `patience` in the latencies. Goodput is
    what was answered with 200 before the schedule of `seconds` was over, a second.
    """
    good = outcome.status == 200
    refused = np.isin(outcome.status, REFUSALS)
    latency = np.where(good, outcome.latency, patience)
    sent = outcome.lag[~np.isnan(outcome.lag)]
    return {
        "offered": len(good) / seconds,
        "goodput": float(np.sum(good & (outcome.due + latency <= seconds))) / seconds,
        "failed": 1 - float(good.mean()),
        "p50_ms": percentile(1e3 * latency, 50),
        "p99_ms": percentile(1e3 * latency, 99),
        "p999_ms": percentile(1e3 * latency, 99.9),
        "lag_p99_ms": percentile(1e3 * sent, 99),
        "refused": float(refused.mean()),
        "refusal_p99_ms": percentile(1e3 * outcome.latency[refused], 99),
        "retry_after": float(outcome.retry_after[refused].mean()) if refused.any() else None,
    }


def percentile(values: Array, share: float) -> float | None:
    """The least value that `share` percent of the values do not exceed; None of no values."""
    return float(np.percentile(values, share, method="inverted_cdf")) if len(values) else None


class _Load:
    def __init__(
        self, port: int, requests: Sequence[bytes], due: Array, patience: float, limit: int
    ) -> None:
        count = len(due)
        self.port, self.requests, self.patience, self.limit = port, requests, patience, limit
        self.due: list[float] = due.tolist()
        self.outcome = Outcome(
            due,
            np.full(count, np.nan),
            np.full(count, np.nan),
            np.zeros(count, np.int64),
            np.zeros(count, np.bool_),
        )
        self.poll = select.epoll()
        self.connections: dict[int, _Connection] = {}
        self.idle: list[_Connection] = []
        self.carried: deque[tuple[int, _Connection]] = deque()
        self.began = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self.began

    def run(self) -> Outcome:
        following, count = 0, len(self.due)
        try:
            while following < count or self.carried:
                following = self._send_due(following)
                self._give_up()
                ahead = LOOK_UP
                if following < count and self._has_room():
                    ahead = min(max(0.0, self.due[following] - self.now()), LOOK_UP)
                # epoll alone would round the wait up to milliseconds.
                select.select([self.poll], [], [], ahead)
                for descriptor, _ in self.poll.poll(0):
                    self._serve(self.connections[descriptor])
        finally:
            for connection in list(self.connections.values()):
                self._close(connection)
            self.poll.close()
        return self.outcome

    def _send_due(self, following: int) -> int:
        """Send what is due, and return the first request that is not, or cannot be sent."""
        now = self.now()
        while following < len(self.due) and (due := self.due[following]) <= now:
            if now - due < self.patience:
                if not self._has_room():
                    break
                self._send(following)
                self.outcome.lag[following] = self.now() - due
            following += 1
        return following

    def _has_room(self) -> bool:
        return bool(self.idle) or len(self.connections) < self.limit

    def _send(self, index: int) -> None:
        request = self.requests[index % len(self.requests)]
        if self.idle:
            connection = self.idle.pop()
            connection.request, connection.unsent = index, request
            self.carried.append((index, connection))
            if not self._write(connection):
                self._watch(connection, select.EPOLLIN | select.EPOLLOUT)
            return
        fresh = socket.socket()
        fresh.setblocking(False)
        fresh.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HANG_UP)
        fresh.connect_ex(("127.0.0.1", self.port))
        connection = _Connection(fresh, index, request)
        self.connections[fresh.fileno()] = connection
        self.carried.append((index, connection))
        self.poll.register(fresh.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _serve(self, connection: _Connection) -> None:
        if connection.unsent:
            if self._write(connection):
                self._watch(connection, select.EPOLLIN)
            return
        try:
            data = connection.socket.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        connection.received += data
        head, gap, body = connection.received.partition(b"\r\n\r\n")
        if not gap:
            return
        head = head.lower()
        _, found, length = head.partition(b"\r\ncontent-length:")
        if not found:
            raise ServerError(f"an answer without Content-Length: {head[:60]!r}")
        if len(body) >= int(length.split(b"\r\n", 1)[0]):
            self._note(connection, head)

    def _note(self, connection: _Connection, head: bytes) -> None:
        index = connection.request
        self.outcome.latency[index] = self.now() - self.due[index]
        self.outcome.status[index] = int(head[9:12])
        self.outcome.retry_after[index] = b"\r\nretry-after:" in head
        if b"\r\nconnection: close" in head:
            self._close(connection)
        else:
            connection.request, connection.received = IDLE, b""
            self.idle.append(connection)

    def _write(self, connection: _Connection) -> bool:
        """Send what can be sent; whether that was all."""
        try:
            sent = connection.socket.send(connection.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(connection.unsent)  # the next read says that it is broken
        connection.unsent = connection.unsent[sent:]
        return not connection.unsent

    def _watch(self, connection: _Connection, events: int) -> None:
        self.poll.modify(connection.socket.fileno(), events)

    def _give_up(self) -> None:
        """Forget what is done, and hang up on what is late."""
        now = self.now()
        while self.carried:
            index, connection = self.carried[0]
            if connection.request == index:
                if now - self.due[index] < self.patience:
                    return
                self._close(connection)
            self.carried.popleft()

    def _close(self, connection: _Connection) -> None:
        if connection.request == IDLE:
            self.idle.remove(connection)
        connection.request = CLOSED
        self.poll.unregister(connection.socket.fileno())
        del self.connections[connection.socket.fileno()]
        connection.socket.close()
