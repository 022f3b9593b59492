"""The shortest way to `POST /predict`: uvicorn's HTTP, and no framework behind it.

One small image, sent as a body that arrives together with its head: it is opened where it is
parsed, goes to the scheduler, and comes back as bytes, without a task, a coroutine or a timer of
its own; or it is refused at once, if there is no room. Everything else goes to the application,
which answers in the same words: forms and JSON, invalid options, bodies that come in pieces, images
that are large or damaged, clients that do not wait for an answer or do not read it, all other
routes. What an application has as middleware does not see the short way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import State
from uvicorn import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.body import BINARY, IMAGES, SMALL_BYTES, Buffers
from service.api.context import given_id, next_id, observe
from service.api.exchange import Exchange
from service.api.heads import Head, Heads, forwarded_for
from service.api.predict import PATH, asked_of
from service.api.responses import lines_for_all, no_room
from service.errors import GateError, UnavailableError
from service.gate import Gate
from service.settings import Settings

_GAP = b"\r\n\r\n"
_URL = PATH.encode()
_TYPES = frozenset(name.encode() for name in (*IMAGES, BINARY))
_NO_ROOM = UnavailableError.status
_LONG_WAY = frozenset((b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"))


class ExpressProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a short way for what is asked most.

    A head that was read before is not read again: what comes with it passes by the parser, which
    then stands where it stood, between two messages.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.state: State = self.config.app.state  # type: ignore[union-attr]
        self.buffers: Buffers = self.state.buffers
        self._heads: Heads = self.state.heads
        self._trusted_hosts = _trusted_hosts(self.config)
        self._between = True  # the parser has read all of a message, and nothing of the next
        self._head: Head | None = None  # the last that may take the short way
        self._body: bytes | None = None  # what there is of such a one
        self._answered = 0.0

    def data_received(self, data: bytes) -> None:
        """Take what has arrived. A body of which there is more to come goes the long way."""
        alone, end = self._between, data.find(_GAP) + len(_GAP)
        if alone and self._may_begin():
            head = self._heads.find(data[:end])
            if head and len(data) - end == head.length and self._begin(head, data[end:]):
                return
        self._head = None
        super().data_received(data)
        if self._body is not None:
            self._go_the_long_way()
        elif alone and self._between and self._head and len(data) - end == self._head.length:
            self._heads.keep(data[:end], self._head)

    def on_message_begin(self) -> None:
        """Begin to read."""
        self._between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Look at a head."""
        self._head = self._read_head()
        if self._head and self._may_begin():
            self._body = b""
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take some of a body."""
        if self._body is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        """Answer a request that has arrived."""
        self._between = True
        if self._head and self._body is not None:
            if self._begin(self._head, self._body):
                self._body = None
                return
            self._go_the_long_way()
        super().on_message_complete()

    def send(self, response: bytes, keep_alive: bool) -> None:
        """Send a whole response, and get ready for the next request."""
        self.transport.write(response)
        if not keep_alive:
            self.transport.close()
        self._answered = self.loop.time()
        if self.pipeline or self.timeout_keep_alive_task is None or self.transport.is_closing():
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self.flow.resume_reading()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle for long: one timer does for many requests."""
        idle = self.loop.time() - self._answered if self._may_begin() else 0.0
        if idle >= self.timeout_keep_alive or self.transport.is_closing():
            super().timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive - idle, self.timeout_keep_alive_handler
            )

    def client_host(self, forwarded: bytes) -> str:
        """Who asks; if a trusted proxy, then whom it asks for."""
        host = self.client[0] if self.client else ""
        if forwarded and host in self._trusted_hosts:
            named = forwarded.decode("latin-1")
            host = self._trusted_hosts.get_trusted_client_address(named)[0] or host
        return host

    def _may_begin(self) -> bool:
        """Whether nothing is under way on this connection."""
        return (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused

    def _read_head(self) -> Head | None:
        """The head, if it is of a request that may take the short way."""
        path, _, query = self.url.partition(b"?")
        if path != _URL or self.parser.get_method() != b"POST":
            return None
        headers = dict(self.headers)
        length = headers.get(b"content-length", b"")
        settings: Settings = self.state.gate.settings
        if not (
            headers.get(b"content-type") in _TYPES
            and length.isdigit()
            and len(length) < 8
            and 0 < int(length) <= min(SMALL_BYTES, settings.max_body_bytes)
            and _LONG_WAY.isdisjoint(headers)
            and self.parser.get_http_version() == "1.1"
        ):
            return None
        return Head(
            query=query,
            length=int(length),
            keep_alive=self.parser.should_keep_alive(),
            request_id=given_id(self.headers),
            forwarded=forwarded_for(self.headers),
        )

    def _begin(self, head: Head, body: bytes) -> bool:
        """Try the short way."""
        gate: Gate = self.state.gate
        try:
            asked = asked_of(gate, head.query)
        except (GateError, RequestValidationError):
            return False
        if gate.door.full:
            self._turn_away(gate, head)
            return True
        last, exchange = self.cycle, Exchange(self, gate, asked.options, head, len(body))
        self.cycle = exchange  # type: ignore[assignment]
        if exchange.begin(body, asked.background):
            return True
        self.cycle = last
        return False

    def _turn_away(self, gate: Gate, head: Head) -> None:
        """Refuse a request for which there is no room; nothing of it is looked at."""
        began, door = gate.clock(), gate.door
        request_id = head.request_id or next_id()
        headers = lines_for_all(self.server_state.default_headers)
        refusal = no_room(door, headers, request_id, head.keep_alive)
        gate.metrics.count_rejection("draining" if self.state.draining else "queue_full")
        log_each, seconds = gate.settings.access_log, gate.clock() - began
        observe(gate.metrics, log_each, request_id, "POST", PATH, _NO_ROOM, seconds)
        self.cycle = None  # type: ignore[assignment]
        self.send(refusal, head.keep_alive)

    def _go_the_long_way(self) -> None:
        body, self._body = self._body, None
        super().on_headers_complete()
        if body:
            super().on_body(body)


@lru_cache(maxsize=8)
def _trusted_hosts(config: Config) -> Any:
    """The proxies that are believed whom they ask for: those of the application's middleware."""
    app: Any = config.app
    return ProxyHeadersMiddleware(app, config.forwarded_allow_ips).trusted_hosts
