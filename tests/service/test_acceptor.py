"""Connections that come while the event loop is busy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any, cast

import pytest
import uvloop

from service.acceptor import Acceptor

Loop = Callable[[Coroutine[Any, Any, None]], None]

LOOPS = [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]
CLIENTS = 64
BACKLOG = 2 * CLIENTS


class Greeter(asyncio.Protocol):
    """Greets whoever connects, and remembers who did."""

    def __init__(self, connected: list[asyncio.Transport]) -> None:
        self.connected = connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        accepted = cast(asyncio.Transport, transport)  # uvloop's has no base class
        self.connected.append(accepted)
        accepted.write(b"hello")


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def connect(stack: ExitStack, port: int, count: int) -> list[socket.socket]:
    return [
        stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        for _ in range(count)
    ]


@pytest.mark.parametrize("run", LOOPS)
def test_all_that_wait_are_accepted_in_few_turns(run: Loop) -> None:
    async def serve() -> None:
        connected: list[asyncio.Transport] = []
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Greeter(connected), "127.0.0.1", 0, backlog=BACKLOG
        )
        acceptor = Acceptor(server.sockets[0], lambda: Greeter(connected))
        with ExitStack() as stack:
            clients = connect(stack, server.sockets[0].getsockname()[1], CLIENTS)
            await turns(10)
            assert len(connected) == CLIENTS
            for client in clients:
                assert await asyncio.to_thread(client.recv, 5) == b"hello"
            peers = {transport.get_extra_info("peername") for transport in connected}
            assert peers == {client.getsockname() for client in clients}
            for transport in connected:
                transport.close()
            acceptor.close()
            server.close()
            await server.wait_closed()

    run(serve())


def test_libuv_alone_accepts_one_a_turn() -> None:
    """As long as this holds, there is a reason for the acceptor."""

    async def serve() -> None:
        connected: list[asyncio.Transport] = []
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Greeter(connected), "127.0.0.1", 0, backlog=BACKLOG
        )
        with ExitStack() as stack:
            connect(stack, server.sockets[0].getsockname()[1], CLIENTS)
            await turns(10)
            assert 1 <= len(connected) <= 10
            server.close()
            for transport in connected:
                transport.close()
            await turns(3)

    uvloop.run(serve())


@pytest.mark.parametrize("run", LOOPS)
def test_closed_it_accepts_no_more_and_others_may_go_on(run: Loop) -> None:
    async def serve() -> None:
        connected: list[asyncio.Transport] = []
        with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as stack:
            port = listening.getsockname()[1]
            acceptor = Acceptor(listening, lambda: Greeter(connected))
            connect(stack, port, 1)
            await turns(10)
            assert len(connected) == 1
            acceptor.close()
            connect(stack, port, 1)
            await turns(10)
            assert len(connected) == 1
            listening.settimeout(10)
            listening.accept()[0].close()
            connected[0].close()
            await turns(3)

    run(serve())
