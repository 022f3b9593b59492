"""One connection on which requests do not wait for the answers to those before them.

HTTP/1.1 allows it (RFC 9112, section 9.3.2: pipelining), and the answers come in the order of the
requests. h11 takes them apart.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import cast

import h11

from service.client.errors import ConnectError, GateClientError, MalformedAnswerError
from service.client.reading import MAX_ANSWER_BYTES, Reply


class NotProcessedError(GateClientError):
    """The service closed in good order, after an answer, before it came to this request."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    answer: asyncio.Future[Reply]
    deadline: float


class Lane(asyncio.Protocol):
    """One connection.

    Args:
        request: what all requests have in common: all but Content-Length and body.
    """

    def __init__(self, request: h11.Request) -> None:
        self._request = request
        template = h11.Connection(h11.CLIENT).send(request)
        assert template is not None
        self._head = template.removesuffix(b"\r\n")
        self._parser = h11.Connection(h11.CLIENT)
        self._response: h11.Response | None = None
        self._body = bytearray()
        self._line: deque[_Waiting] = deque()
        self._writable = asyncio.Event()
        self._writable.set()
        self._timer: asyncio.TimerHandle | None = None
        self._ended: GateClientError | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __len__(self) -> int:
        """Requests that wait for their answers."""
        return len(self._line)

    @property
    def usable(self) -> bool:
        """Whether it takes requests."""
        return self._ended is None

    def send(self, image: bytes, deadline: float) -> asyncio.Future[Reply]:
        """Write a request at once; the future is its answer.

        Who gives the request up leaves its place in the line: the answer is dropped when it comes.
        If the answer that is due first has not come by its deadline (in the loop's time), the
        connection is closed, and so is every request on it.

        The future raises:
            ConnectError: the connection was closed before the answer was complete.
            MalformedAnswerError: the answer is too long.
            NotProcessedError: the service closed in good order before it came to this request.
        """
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if self._ended is not None:
            answer.set_exception(self._ended)
            return answer
        self._line.append(_Waiting(answer, deadline))
        self._transport.writelines((self._head, b"Content-Length: %d\r\n\r\n" % len(image), image))
        if len(self._line) == 1:
            self._watch()
        return answer

    async def drained(self) -> None:
        """Wait until what was written is on its way, so that it does not pile up here."""
        await self._writable.wait()

    def close(self, error: GateClientError) -> None:
        """Close, and let every request that waits raise `error`."""
        if self._ended is not None:
            return
        self._ended = error
        self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        self._writable.set()
        for waiting in self._line:
            if not waiting.answer.done():
                waiting.answer.set_exception(error)
                waiting.answer.exception()  # who gave it up does not ask for it
        self._line.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no such class

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        self.close(ConnectError(f"the connection was lost: {error or 'closed by the service'}"))
        self.closed.set_result(None)

    def pause_writing(self) -> None:
        """Called by the event loop."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Called by the event loop."""
        self._writable.set()

    def eof_received(self) -> None:
        """Called by the event loop; an answer without a length ends here."""
        self.data_received(b"")
        self.close(ConnectError("the service closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._ended is not None:
            return
        try:
            self._parser.receive_data(data)
            self._read()
        except h11.RemoteProtocolError as error:
            self.close(ConnectError(f"the answer is cut short, or no HTTP: {error}"))
        except GateClientError as error:
            self.close(error)

    def _read(self) -> None:
        """Answer those who wait, first come first served, as far as data has come."""
        while self._line:
            if self._parser.our_state is h11.IDLE:  # tell the parser what was written long ago
                self._parser.send(self._request)
                self._parser.send(h11.EndOfMessage())
            match self._parser.next_event():
                case h11.Response() as response:
                    self._response = response
                case h11.Data(data=data):
                    self._body += data
                    if len(self._body) > MAX_ANSWER_BYTES:
                        raise MalformedAnswerError(f"more than {MAX_ANSWER_BYTES} bytes")
                case h11.EndOfMessage():
                    self._answer()
                case h11.InformationalResponse():
                    pass
                case _:  # it needs more data
                    return
        if self._parser.trailing_data[0]:
            raise ConnectError("an answer came that nobody asked for")

    def _answer(self) -> None:
        assert self._response is not None
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in self._response.headers
        }
        reply = Reply(self._response.status_code, headers, bytes(self._body))
        waiting = self._line.popleft()
        if not waiting.answer.done():
            waiting.answer.set_result(reply)
        self._response, self._body = None, bytearray()
        self._watch()
        if self._parser.their_state is not h11.DONE or self._parser.our_state is not h11.DONE:
            raise NotProcessedError("the service closed before it came to this request")
        self._parser.start_next_cycle()

    def _watch(self) -> None:
        """Close when the answer that is due first is overdue."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._line:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._line[0].deadline, self._overdue)

    def _overdue(self) -> None:
        self.close(ConnectError("the connection was closed, for an answer on it is overdue"))
