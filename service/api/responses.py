"""Whole responses as bytes, for requests that no framework answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.api.heads import Header
from service.api.problems import raw_response
from service.door import Door


class HeaderLines:
    """Headers that all responses have, as lines: uvicorn has another list of them every second."""

    def __init__(self) -> None:
        self._headers: Sequence[Header] = ()
        self._lines = b""

    def __call__(self, headers: Sequence[Header]) -> bytes:
        """The lines, of the last list written once."""
        if headers is not self._headers:
            self._headers, self._lines = headers, lines(headers)
        return self._lines


lines_for_all = HeaderLines()


def lines(headers: Sequence[Header]) -> bytes:
    """Headers as lines."""
    return b"".join([b"%s: %s\r\n" % header for header in headers])


def response(status: int, headers: bytes, request_id: str, keep_alive: bool, body: bytes) -> bytes:
    """A response, from the lines of its other headers and its body."""
    return b"%s%sx-request-id: %s\r\ncontent-length: %d\r\n%s\r\n%s" % (
        STATUS_LINE[status],
        headers,
        request_id.encode(),
        len(body),
        b"" if keep_alive else b"connection: close\r\n",
        body,
    )


def no_room(door: Door, headers: bytes, request_id: str, keep_alive: bool) -> bytes:
    """The response to those for whom there is no room, in words that are written once."""
    name = request_id.encode()
    words = _no_room(door.limit, door.under_way, headers, len(name), keep_alive)
    return name.join(words)


@lru_cache(maxsize=256)
def _no_room(
    limit: int, under_way: int, headers: bytes, length: int, keep_alive: bool
) -> list[bytes]:
    """The parts before, between and after the two places of a request's id."""
    name = "\x7f" * length  # in no id, header or word
    status, more, body = raw_response(Door(limit, under_way).refusal(), name)
    return response(status, headers + lines(more), name, keep_alive, body).split(name.encode())
