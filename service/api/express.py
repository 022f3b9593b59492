"""The shortest way to `POST /predict`: uvicorn's HTTP, and no framework behind it.

One small image, sent as a body that arrives together with its head: it is opened where it is
parsed, goes to the scheduler, and comes back as bytes, without a task, a coroutine or a timer of
its own; or it is refused at once, if there is no room. Everything else goes to the application,
which answers in the same words: forms and JSON, invalid options, bodies that come in pieces, images
that are large or damaged, clients that do not wait for an answer or do not read it, all other
routes. What an application has as middleware does not see the short way.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from fastapi.exceptions import RequestValidationError
from uvicorn import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.answering import NO_TIME, SMALL_PIXELS, Settled, count_rejection
from service.api.body import BINARY, IMAGES, JSON, SMALL_BYTES, Buffers
from service.api.context import CLIENT_GONE, HEADER, observe, request_id_of, unexpected
from service.api.predict import PATH, content, options_of, read_query
from service.api.problems import Header, raw_response
from service.cache import Key
from service.cases import Case
from service.errors import GateError, UnavailableError
from service.gate import Gate
from service.intake import Opened, Sent, open_sent
from service.lanes import Job, Times
from service.results import Options
from service.settings import Settings

_CONTENT_TYPE = (b"content-type", JSON.encode())
_URL = PATH.encode()
_TYPES = frozenset(name.encode() for name in (*IMAGES, BINARY))
_LONG_WAY = frozenset((b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"))


class ExpressProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a short way for what is asked most."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._trusted_hosts = _trusted_hosts(self.config)
        self._body: bytes | None = None  # what there is of one that may take the short way

    def data_received(self, data: bytes) -> None:
        """Take what has arrived. A body of which there is more to come goes the long way."""
        super().data_received(data)
        if self._body is not None:
            self._go_the_long_way()

    def on_headers_complete(self) -> None:
        """Look at a head."""
        if self._may_be_short():
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
        if self._body is not None:
            self._unset_keepalive_if_required()
            last, exchange = self.cycle, Exchange(self)
            self.cycle = exchange  # type: ignore[assignment]
            if exchange.begin(self.url.partition(b"?")[2], self._body):
                self._body = None
                return
            self.cycle = last
            self._go_the_long_way()
        super().on_message_complete()

    def send(self, status: int, headers: Iterable[Header], body: bytes, keep_alive: bool) -> None:
        """Send a whole response, and get ready for the next request."""
        lines = [STATUS_LINE[status]]
        lines += [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        lines += [b"%s: %s\r\n" % header for header in headers]
        lines.append(b"content-length: %d\r\n" % len(body))
        if not keep_alive:
            lines.append(b"connection: close\r\n")
        self.transport.write(b"".join((*lines, b"\r\n", body)))
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    def client_host(self) -> str:
        """Who asks; if a trusted proxy, then whom it asks for."""
        host = self.client[0] if self.client else ""
        forwarded = [value for name, value in self.headers if name == b"x-forwarded-for"]
        if forwarded and host in self._trusted_hosts:
            named = b", ".join(forwarded).decode("latin-1")
            host = self._trusted_hosts.get_trusted_client_address(named)[0] or host
        return host

    def _may_be_short(self) -> bool:
        if self.url.partition(b"?")[0] != _URL or self.parser.get_method() != b"POST":
            return False
        headers = dict(self.headers)
        length = headers.get(b"content-length", b"")
        settings: Settings = self.config.app.state.gate.settings  # type: ignore[union-attr]
        return (
            headers.get(b"content-type") in _TYPES
            and length.isdigit()
            and len(length) < 8
            and 0 < int(length) <= min(SMALL_BYTES, settings.max_body_bytes)
            and _LONG_WAY.isdisjoint(headers)
            and self.parser.get_http_version() == "1.1"
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
        )

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

    _options: Options
    _key: Key | None
    _case: Case
    _decode_seconds: float

    def __init__(self, protocol: ExpressProtocol) -> None:
        self.keep_alive: bool = protocol.parser.should_keep_alive()
        self.response_complete = self.disconnected = False
        self._protocol = protocol
        self._state = protocol.config.app.state  # type: ignore[union-attr]
        self._gate: Gate = self._state.gate
        self._began = self._gate.clock()
        self._request_id = request_id_of(protocol.headers)
        self._size = 0
        self._entered = False
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

    def begin(self, query: bytes, body: bytes) -> bool:
        """Have an image settled, and answer; False, and nothing done, if it goes the long way."""
        gate = self._gate
        try:
            asked = read_query(query)
            self._options = options = options_of(gate, asked)
            gate.door.check()
        except UnavailableError as error:
            self._refuse(error)
            return True
        except (GateError, RequestValidationError):
            return False
        buffers: Buffers = self._state.buffers
        if buffers.used + len(body) > buffers.limit:
            return False
        sent = Sent(body, "/body")
        self._key = gate.cache.key(gate.model.bundle.digest, options.rule, sent)
        known = gate.cache.get(self._key)
        if known is None:
            try:
                (image,) = open_sent((sent,), gate.settings.max_pixels)
            except Exception:  # the application meets it too, and has words for it
                return False
            if not isinstance(image, Opened) or image.pixels > SMALL_PIXELS:
                return False
            self._case = Case(image, options.rule)
        else:
            self._case = known
            gate.metrics.cache_hits.inc()
        self._decode_seconds = gate.clock() - self._began
        gate.door.enter()
        self._entered, self._size = True, len(body)
        buffers.used += self._size
        if known:
            self._answer(NO_TIME)
        else:
            self._enter(asked.background)
        return True

    def _enter(self, background: bool) -> None:
        gate = self._gate
        try:
            self._job = gate.scheduler.enter(
                (self._case,),
                gate.clock() + gate.settings.request_timeout_seconds,
                self._answer,
                client=self._protocol.client_host(),
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
            self._respond(200, [_CONTENT_TYPE], body)

    def _refuse(self, error: GateError) -> None:
        count_rejection(self._gate, error, self._state.draining)
        self._respond(*raw_response(error, self._request_id))

    def _respond(self, status: int, headers: list[Header], body: bytes) -> None:
        protocol = self._protocol
        if protocol.transport.is_closing():
            self._end(CLIENT_GONE)
            return
        self._end(status)
        protocol.send(
            status, [*headers, (HEADER, self._request_id.encode())], body, self.keep_alive
        )

    def _end(self, status: int) -> None:
        """Give back what this occupied, and note what became of it."""
        gate = self._gate
        if self._entered:
            gate.door.leave()
            self._state.buffers.used -= self._size
        self.response_complete, self._entered, self._job = True, False, None
        seconds = gate.clock() - self._began
        observe(
            gate.metrics, gate.settings.access_log, self._request_id, "POST", PATH, status, seconds
        )
