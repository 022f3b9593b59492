"""Waiting for what is to come about, and failing if it does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

SECONDS = 60.0


def eventually(claim: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


async def until(claim: Callable[[], object]) -> None:
    """Let other tasks run until it holds; and other threads, which a loop that never rests starves.

    (Whoever waits for the interpreter's lock asks for it after 5 ms in which no one let it go, and
    a turn of the loop lets it go for a moment.)
    """
    async with asyncio.timeout(SECONDS):
        for _ in iter(lambda: bool(claim()), True):
            await asyncio.sleep(0.001)
