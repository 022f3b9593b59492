"""Servers that fail in every way: each way of asking abstains, says why, and does not hang."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from service.client import AsyncGateClient, GateClient, Pipeline
from tests.service.client.wire import answer, bodies, finish, http

TIMEOUT = 0.4
CEILING = 5.0  # seconds that must never pass, on a machine that is busy with other things

PROBLEM = "application/problem+json"


def ask(url, **settings):
    with GateClient(url, **settings) as client:
        return client.gate(b"image")


def ask_many(url, **settings):
    with GateClient(url, **settings) as client:
        first, second = client.gate_many([b"image", b"other"])
    assert first == second
    return first


def ask_asynchronously(url, **settings):
    async def run():
        async with AsyncGateClient(url, **settings) as client:
            return await client.gate(b"image")

    return asyncio.run(run())


def ask_in_a_pipeline(url, **settings):
    async def run():
        async with Pipeline(url, connections=2, depth=2, **settings) as pipe:
            answers = await pipe.map([b"image"] * 3)
        assert len({each.reasons for each in answers}) == 1
        return answers[0]

    return asyncio.run(run())


WAYS = [ask, ask_many, ask_asynchronously, ask_in_a_pipeline]


def says(*pieces, pause=0.0):
    """A server that says this to every request, and closes."""

    def handle(connection, number):
        next(bodies(connection), None)
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        finish(connection)

    return handle


def answers(reply):
    """A server that gives this answer to every request."""

    def handle(connection, number):
        for _ in bodies(connection):
            connection.sendall(reply)

    return handle


def never_answers(connection, number):
    while connection.recv(4096):
        pass


def answers_early(connection, number):
    connection.recv(1)
    connection.sendall(http(413, b"{}", PROBLEM, "Connection: close"))
    finish(connection)


def reads_nothing(connection, number):
    time.sleep(2 * TIMEOUT)


def resets(connection, number):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


LONG = answer()
SERVERS = {
    "garbage": (says(b"\0\1\2 hello\r\n\r\n"), "unavailable"),
    "another protocol": (says(b"SSH-2.0-OpenSSH_9.6\r\n"), "unavailable"),
    "closes at once": (lambda connection, number: None, "unavailable"),
    "closes after the request": (says(), "unavailable"),
    "resets": (resets, "unavailable"),
    "half of a head": (says(LONG[:40]), "unavailable"),
    "half of a body": (says(LONG[:-40]), "unavailable"),
    "half of a chunked body": (
        says(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"res\r\n'
        ),
        "unavailable",
    ),
    "a body without a length, cut short": (
        says(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"res'),
        "malformed",
    ),
    "never answers": (never_answers, "deadline"),
    "reads nothing": (reads_nothing, "deadline"),
    "dribbles a head": (says(*[b"%c" % byte for byte in LONG], pause=0.05), "deadline"),
    "dribbles a body": (says(LONG[:-40], *[b" "] * 40, pause=0.05), "deadline"),
    "another type": (answers(http(200, b"{}", "text/html")), "malformed"),
    "no JSON": (answers(http(200, b"hello")), "malformed"),
    "lacks fields": (answers(http(200, b"{}")), "malformed"),
    "429": (answers(http(429, b"{}", PROBLEM, "Retry-After: 0")), "rejected"),
    "500": (answers(http(500, b"", PROBLEM)), "unavailable"),
    "503": (answers(http(503, b"", PROBLEM)), "unavailable"),
    "503 with Retry-After": (answers(http(503, b"", PROBLEM, "Retry-After: 1")), "unavailable"),
    "504": (answers(http(504, b"", PROBLEM)), "deadline"),
    "413": (answers(http(413, b"{}", PROBLEM)), "input"),
    "413 before the body is read": (answers_early, "input"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SERVERS)
def test_it_abstains_and_says_why(way, name, serving):
    handle, reason = SERVERS[name]
    with serving(handle) as url:
        began = time.monotonic()
        given = way(url, timeout=TIMEOUT)
        assert time.monotonic() - began < CEILING
    assert (given.decision, given.reasons) == ("abstain", (reason,))
    assert given.error
    assert given.label is None


@pytest.mark.parametrize("way", WAYS)
def test_nobody_listens(way):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = way(f"http://127.0.0.1:{port}", timeout=5.0)
    assert given.reasons == ("unavailable",)


@pytest.mark.parametrize("way", WAYS)
def test_a_host_that_there_is_not(way):
    assert way("http://gate.invalid", timeout=5.0).reasons in {("unavailable",), ("deadline",)}


@pytest.mark.parametrize("way", WAYS)
def test_tls_where_there_is_none(way, serving):
    def handle(connection, number):
        connection.sendall(answer())
        never_answers(connection, number)

    with serving(handle) as url:
        given = way(url.replace("http:", "https:"), timeout=5.0)
    assert given.reasons == ("unavailable",)


def test_retries_outlast_a_service_that_comes_back(serving):
    def handle(connection, number):
        if number >= 2:
            says(answer())(connection, number)

    with serving(handle) as url:
        assert ask(url, retries=1).reasons == ("unavailable",)
    with serving(handle) as url:
        assert ask(url, retries=2).accepted
