"""How many requests may be under way between their last byte and their answer.

The scheduler's queue is bounded, but where one processor decodes and infers, requests that are too
many do not reach it in time: they wait for the event loop, unseen. So they are counted as soon as
they have been read, and refused before they cost more: at their head, where the door is full.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.errors import UnavailableError


@dataclass
class Door:
    """A context manager: one request under way.

    Attributes:
        limit: of those under way.
        under_way: how many are.
        visitors: requests that may still come to be under way, or were, and are not answered.
    """

    limit: int
    under_way: int = 0
    visitors: int = 0
    _left: asyncio.Event | None = None

    @property
    def full(self) -> bool:
        """Whether there is no room for one more."""
        return self.under_way >= self.limit

    def refusal(self) -> UnavailableError:
        """What those are told for whom there is no room."""
        return UnavailableError(
            f"{self.under_way} requests are under way already; the limit is {self.limit}",
            retry_after=1,
        )

    def check(self) -> None:
        """See whether there is room for one more.

        Raises:
            UnavailableError: there is none.
        """
        if self.full:
            raise self.refusal()

    def enter(self) -> None:
        """Let one more in.

        Raises:
            UnavailableError: there is no room.
        """
        self.check()
        self.under_way += 1

    def leave(self) -> None:
        """Let one out."""
        self.under_way -= 1
        self._tell()

    @contextmanager
    def visit(self) -> Iterator[None]:
        """Count a visitor meanwhile."""
        self.visitors += 1
        try:
            yield
        finally:
            self.visitors -= 1
            self._tell()

    async def emptied(self) -> None:
        """Wait until all have left."""
        self._left = asyncio.Event()
        while self.visitors or self.under_way:
            await self._left.wait()
            self._left.clear()

    def _tell(self) -> None:
        if self._left is not None:
            self._left.set()

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *_: object) -> None:
        self.leave()
