"""Heads of requests, and those that were read before.

A client that keeps its connection sends the same head again and again. What was read once, from
the first byte of a message to the empty line, says the same whenever the same bytes come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Header = tuple[bytes, bytes]

# Heads that are kept, and bytes of each.
MOST, LONGEST = 4096, 1024


@dataclass(frozen=True, slots=True)
class Head:
    """What a request's head says, where it may take the short way.

    Attributes:
        query: of the URL.
        length: of the body.
        keep_alive: whether the connection is to stay open.
        request_id: the client's, if it gave a sane one; or none.
        forwarded: as `forwarded_for`.
    """

    query: bytes
    length: int
    keep_alive: bool
    request_id: str
    forwarded: bytes


class Heads:
    """Heads by their bytes: as many as are sent time and again."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, written: bytes) -> Head | None:
        """The head of these bytes, if it was kept."""
        return self._known.get(written)

    def keep(self, written: bytes, head: Head) -> None:
        """Keep a head, unless it is long, or names its request: that will not come again."""
        if len(written) > LONGEST or head.request_id:
            return
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[written] = head


def forwarded_for(headers: Sequence[Header]) -> bytes:
    """Whom proxies ask for, by their X-Forwarded-For."""
    return b", ".join([value for name, value in headers if name == b"x-forwarded-for"])
