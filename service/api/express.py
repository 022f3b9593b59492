"""The shortest way to `POST /predict`: uvicorn's HTTP, and no framework behind it.

One small image, sent as a body that arrives together with its head: it is opened where it is
parsed, goes to the scheduler, and comes back as bytes, without a task, a coroutine or a timer of
its own; or it is refused at once, if there is no room. Everything else goes to the application,
which answers in the same words: forms and JSON, invalid options, bodies that come in pieces, images
that are large or damaged, clients that do not wait for an answer or do not read it, all other
routes. What an application has as middleware does not see the short way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import State
from uvicorn import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.answering import NO_TIME, SMALL_PIXELS, Settled, count_rejection
from service.api.body import BINARY, IMAGES, JSON, SMALL_BYTES, Buffers
from service.api.context import CLIENT_GONE, given_id, next_id, observe, unexpected
from service.api.heads import Head, Header, Heads, forwarded_for
from service.api.predict import PATH, asked_of, content
from service.api.problems import raw_response
from service.cache import Key
from service.cases import Case
from service.door import Door
from service.errors import GateError
from service.gate import Gate
from service.intake import Opened, Sent, open_sent
from service.lanes import Job, Times
from service.results import Options
from service.settings import Settings

_GAP = b"\r\n\r\n"
_JSON = b"content-type: %s\r\n" % JSON.encode()
_URL = PATH.encode()
_TYPES = frozenset(name.encode() for name in (*IMAGES, BINARY))
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
        elif alone and self._head and len(data) - end == self._head.length:
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
            headers=self.headers,
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
        """Refuse a request for which there is no room, in words that are written once."""
        began, door = gate.clock(), gate.door
        request_id = head.request_id or next_id()
        name = request_id.encode()
        headers = _of_all.lines(self.server_state.default_headers)
        before, between, after = _refusal(
            door.limit, door.under_way, head.keep_alive, headers, len(name)
        )
        gate.metrics.count_rejection("draining" if self.state.draining else "queue_full")
        log_each, seconds = gate.settings.access_log, gate.clock() - began
        observe(gate.metrics, log_each, request_id, "POST", PATH, 503, seconds)
        self.cycle = None  # type: ignore[assignment]
        self.send(b"".join((before, name, between, name, after)), head.keep_alive)

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


class Exchange:
    """A request on the short way, and its answer.

    To uvicorn's protocol it is what a `RequestResponseCycle` is, of which that sees no more than
    the attributes. Of a connection's requests, it tells only the last that the client has gone.

    Attributes:
        keep_alive: whether the connection stays open when this is answered.
        response_complete: whether it was answered.
        disconnected: whether the client has gone.
    """

    __slots__ = (
        "_began",
        "_case",
        "_decode_seconds",
        "_entered",
        "_gate",
        "_head",
        "_job",
        "_key",
        "_options",
        "_protocol",
        "_request_id",
        "_size",
        "disconnected",
        "keep_alive",
        "response_complete",
    )
    _key: Key | None
    _case: Case
    _decode_seconds: float

    def __init__(
        self, protocol: ExpressProtocol, gate: Gate, options: Options, head: Head, size: int
    ) -> None:
        self.keep_alive = head.keep_alive
        self.response_complete = self.disconnected = self._entered = False
        self._protocol, self._head, self._size = protocol, head, size
        self._gate, self._options = gate, options
        self._began = gate.clock()
        self._request_id = head.request_id or next_id()
        self._job: Job[Case] | None = None

    @property
    def message_event(self) -> Exchange:
        """What the protocol sets when the client has gone."""
        return self

    def set(self) -> None:
        """Take the image back, if the client has gone."""
        if self.disconnected and self._job:
            self._gate.scheduler.take_back(self._job)
            self._gate.metrics.count_rejection("cancelled")
            self._end(CLIENT_GONE)

    def begin(self, body: bytes, background: bool) -> bool:
        """Have an image settled, and answer; False, and nothing done, if it goes the long way."""
        gate, buffers = self._gate, self._protocol.buffers
        if buffers.used + self._size > buffers.limit:
            return False
        sent = Sent(body, "/body")
        self._key = gate.cache.key(gate.model.bundle.digest, self._options.rule, sent)
        known = gate.cache.get(self._key)
        if known is None:
            try:
                (image,) = open_sent((sent,), gate.settings.max_pixels)
            except Exception:  # the application meets it too, and has words for it
                return False
            if not isinstance(image, Opened) or image.pixels > SMALL_PIXELS:
                return False
            self._case = Case(image, self._options.rule)
        else:
            self._case = known
            gate.metrics.cache_hits.inc()
        self._decode_seconds = gate.clock() - self._began
        gate.door.enter()
        self._entered = True
        buffers.used += self._size
        if known:
            self._answer(NO_TIME)
        else:
            self._enter(background)
        return True

    def _enter(self, background: bool) -> None:
        gate = self._gate
        try:
            self._job = gate.scheduler.enter(
                (self._case,),
                gate.clock() + gate.settings.request_timeout_seconds,
                self._answer,
                client=self._protocol.client_host(self._head.forwarded),
                background=background,
            )
        except GateError as error:
            self._answer(error)

    def _answer(self, outcome: Times | GateError) -> None:
        """Answer, now that the image is settled, or cannot be."""
        gate = self._gate
        try:
            if isinstance(outcome, GateError):
                raise outcome
            gate.cache.put(self._key, self._case)
            settled = Settled((self._case,), self._decode_seconds, outcome)
            body = content(gate, self._options, settled, self._request_id, self._began)
        except GateError as error:
            self._refuse(error)
        except Exception:
            self._refuse(unexpected(self._request_id))
        else:
            self._respond(200, _JSON, body)

    def _refuse(self, error: GateError) -> None:
        count_rejection(self._gate, error, self._protocol.state.draining)
        status, headers, body = raw_response(error, self._request_id)
        self._respond(status, _lines(headers), body)

    def _respond(self, status: int, headers: bytes, body: bytes) -> None:
        protocol = self._protocol
        if protocol.transport.is_closing():
            self._end(CLIENT_GONE)
            return
        self._end(status)
        headers = _of_all.lines(protocol.server_state.default_headers) + headers
        response = _response(status, headers, self._request_id, self.keep_alive, body)
        protocol.send(response, self.keep_alive)

    def _end(self, status: int) -> None:
        """Give back what this occupied, and note what became of it."""
        gate = self._gate
        if self._entered:
            gate.door.leave()
            self._protocol.buffers.used -= self._size
        self.response_complete, self._entered, self._job = True, False, None
        seconds = gate.clock() - self._began
        observe(
            gate.metrics, gate.settings.access_log, self._request_id, "POST", PATH, status, seconds
        )


def _response(status: int, headers: bytes, request_id: str, keep_alive: bool, body: bytes) -> bytes:
    return b"%s%sx-request-id: %s\r\ncontent-length: %d\r\n%s\r\n%s" % (
        STATUS_LINE[status],
        headers,
        request_id.encode(),
        len(body),
        b"" if keep_alive else b"connection: close\r\n",
        body,
    )


@lru_cache(maxsize=256)
def _refusal(
    limit: int, under_way: int, keep_alive: bool, headers: bytes, length: int
) -> list[bytes]:
    """The response to those for whom there is no room, around both places of a request's id."""
    name = "\x7f" * length  # in no id, header or word
    status, more, body = raw_response(Door(limit, under_way).refusal(), name)
    return _response(status, headers + _lines(more), name, keep_alive, body).split(name.encode())


def _lines(headers: Sequence[Header]) -> bytes:
    return b"".join([b"%s: %s\r\n" % header for header in headers])


class _HeadersOfAll:
    """Headers of all responses, as lines: uvicorn has another list of them every second."""

    def __init__(self) -> None:
        self._headers: Sequence[Header] = ()
        self._lines = b""

    def lines(self, headers: Sequence[Header]) -> bytes:
        """The lines, of the last list written once."""
        if headers is not self._headers:
            self._headers, self._lines = headers, _lines(headers)
        return self._lines


_of_all = _HeadersOfAll()
