"""A request on the short way (`service.api.express`), from its image to its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.api.answering import NO_TIME, SMALL_PIXELS, Settled, count_rejection
from service.api.body import JSON
from service.api.context import CLIENT_GONE, next_id, observe, unexpected
from service.api.heads import Head
from service.api.predict import PATH, content
from service.api.problems import raw_response
from service.api.responses import lines, lines_for_all, response
from service.cache import Key
from service.cases import Case
from service.errors import GateError
from service.gate import Gate
from service.intake import Opened, Sent, open_sent
from service.lanes import Job, Times
from service.results import Options

if TYPE_CHECKING:
    from service.api.express import ExpressProtocol

_JSON = b"content-type: %s\r\n" % JSON.encode()


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
        self._respond(status, lines(headers), body)

    def _respond(self, status: int, headers: bytes, body: bytes) -> None:
        protocol = self._protocol
        if protocol.transport.is_closing():
            self._end(CLIENT_GONE)
            return
        self._end(status)
        headers = lines_for_all(protocol.server_state.default_headers) + headers
        whole = response(status, headers, self._request_id, self.keep_alive, body)
        protocol.send(whole, self.keep_alive)

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
