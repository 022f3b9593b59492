"""Pipelining: order, connections that end, bounds, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import time

import pytest

from service.client import Pipeline
from tests.service.client.wire import answer, bodies, finish

pytestmark = pytest.mark.anyio


def numbers(count):
    return [b"%d" % index for index in range(count)]


def labels(answers):
    return [given.label for given in answers]


def echo(connection, count=None, *more):
    """Answer each request with its body as the label; only so many, if `count` says so."""
    for done, body in enumerate(bodies(connection), 1):
        connection.sendall(answer(body.decode(), *(more if done == count else ())))
        if done == count:
            finish(connection)
            return


async def test_requests_do_not_wait_for_answers(serving):
    """The server answers nothing before it has read all that may be under way."""
    connections = []

    def handle(connection, number):
        connections.append(number)
        requests = bodies(connection)
        held = [next(requests) for _ in range(5)]
        for body in held:
            connection.sendall(answer(body.decode()))
        echo(connection)

    with serving(handle) as url:
        async with Pipeline(url, connections=2, depth=5) as pipe:
            answers = await pipe.map(numbers(10))
    assert labels(answers) == [str(index) for index in range(10)]
    assert connections == [0, 1]


async def test_no_more_is_under_way_than_asked_for(serving):
    lock, under_way, most = threading.Lock(), 0, 0

    def handle(connection, number):
        nonlocal under_way, most

        def reply():
            nonlocal under_way
            while (body := waiting.get()) is not None:
                time.sleep(0.002)
                with lock:
                    under_way -= 1
                connection.sendall(answer(body.decode()))

        waiting = queue.SimpleQueue()
        replying = threading.Thread(target=reply)
        replying.start()
        for body in bodies(connection):
            with lock:
                under_way += 1
                most = max(most, under_way)
            waiting.put(body)
        waiting.put(None)
        replying.join()

    taken = 0

    def images():
        nonlocal taken
        for image in numbers(60):
            taken += 1
            yield image

    with serving(handle) as url:
        async with Pipeline(url, connections=2, depth=3) as pipe:
            given = []
            async for each in pipe.stream(images()):
                given.append(each.label)
                assert taken <= len(given) + 6
            others = await asyncio.gather(*[pipe.gate(image) for image in numbers(30)])
    assert given == [str(index) for index in range(60)]
    assert labels(others) == [str(index) for index in range(30)]
    assert 4 <= most <= 6


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_a_server_that_closes_in_good_order_after_so_many_answers(serving, count):
    with serving(lambda connection, _: echo(connection, count, "Connection: close")) as url:
        async with Pipeline(url, connections=2, depth=8) as pipe:
            answers = await pipe.map(numbers(40))
    assert labels(answers) == [str(index) for index in range(40)]


async def test_what_a_lost_connection_leaves_open_is_asked_again(serving):
    seen = []

    def handle(connection, number):
        if number == 0:
            echo(connection, 3)
            return
        for body in bodies(connection):
            seen.append(body)
            connection.sendall(answer(body.decode()))

    with serving(handle) as url:
        async with Pipeline(url, connections=1, depth=8) as pipe:
            answers = await pipe.map(numbers(20))
    assert labels(answers) == [str(index) for index in range(20)]
    assert sorted(seen, key=int) == numbers(20)[3:]


async def test_a_connection_that_ends_while_another_opens_is_not_taken(serving, monkeypatch):
    """To be given to it would count as having been lost once: the second loss is the last."""
    tried = []

    def handle(connection, number):
        for body in bodies(connection):
            tried.append((number, body))
            if number == 1:
                return
            time.sleep(0.05)
            connection.sendall(answer(body.decode()))
            if number == 0:
                return

    async def open_slowly(pipe):
        if opened:
            await asyncio.sleep(0.3)
        opened.append(await plain(pipe))
        return opened[-1]

    opened, plain = [], Pipeline._open
    monkeypatch.setattr(Pipeline, "_open", open_slowly)
    with serving(handle) as url:
        async with Pipeline(url, connections=2) as pipe:
            answers = await pipe.map([b"a", b"b"])
    assert labels(answers) == ["a", "b"]
    assert tried == [(0, b"a"), (1, b"b"), (2, b"b")]


async def test_a_request_is_sent_twice_at_most(serving):
    tries = []

    def handle(connection, number):
        for body in bodies(connection):
            tries.append(body)
            if body == b"7":
                return
            connection.sendall(answer(body.decode()))

    with serving(handle) as url:
        async with Pipeline(url, connections=1, depth=1) as pipe:
            answers = await pipe.map(numbers(12))
    assert tries.count(b"7") == 2
    assert answers[7].reasons == ("unavailable",)
    expected = [None if index == 7 else str(index) for index in range(12)]
    assert labels(answers) == expected


async def test_a_connection_that_is_stuck_is_closed_and_the_others_go_on(serving):
    def handle(connection, number):
        if number == 0:
            while connection.recv(4096):
                pass
        echo(connection)

    with serving(handle) as url:
        async with Pipeline(url, connections=2, depth=2, timeout=0.3) as pipe:
            first = asyncio.create_task(pipe.gate(b"first"))
            await asyncio.sleep(0.15)
            rest = await pipe.map(numbers(12))
            assert (await first).reasons == ("deadline",)
    assert labels(rest) == [str(index) for index in range(12)]


async def test_an_idle_connection_that_was_closed_is_replaced(serving):
    with serving(lambda connection, _: echo(connection, 2)) as url:
        async with Pipeline(url, connections=1) as pipe:
            for _ in range(3):
                assert labels(await pipe.map(numbers(2))) == ["0", "1"]


async def test_an_answer_that_nobody_asked_for_is_nobodys(serving):
    def handle(connection, number):
        for body in bodies(connection):
            connection.sendall(answer(body.decode()) + (answer("stray") if number == 0 else b""))

    with serving(handle) as url:
        async with Pipeline(url, connections=1, depth=1) as pipe:
            answers = await pipe.map(numbers(5))
    assert labels(answers) == ["0", "1", "2", "3", "4"]


async def test_a_caller_who_leaves_does_not_shift_the_answers(serving):
    def handle(connection, number):
        for body in bodies(connection):
            time.sleep(0.01)
            connection.sendall(answer(body.decode()))

    with serving(handle) as url:
        async with Pipeline(url, connections=1, depth=16) as pipe:
            tasks = [asyncio.create_task(pipe.gate(image)) for image in numbers(16)]
            await asyncio.sleep(0.05)
            for task in tasks[::2]:
                task.cancel()
            given = await asyncio.gather(*tasks, return_exceptions=True)
            assert labels(given[1::2]) == [str(index) for index in range(1, 16, 2)]
            assert labels(await pipe.map(numbers(20))) == [str(index) for index in range(20)]


async def left_since(before):
    """The tasks that are there and were not, after what was begun had its turn."""
    for _ in range(20):
        await asyncio.sleep(0)
    return asyncio.all_tasks() - before


async def test_cancellation_leaves_nothing_behind(serving):
    with serving(lambda connection, _: [None for _ in bodies(connection)]) as url:
        before = asyncio.all_tasks()
        async with Pipeline(url, connections=2, depth=4) as pipe:
            mapping = asyncio.create_task(pipe.map(numbers(100)))
            await asyncio.sleep(0.1)
            assert len(asyncio.all_tasks() - before) == 1 + 8
            mapping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await mapping
            assert await left_since(before) == set()


async def test_a_stream_that_is_left_leaves_nothing_behind(serving):
    with serving(lambda connection, _: echo(connection)) as url:
        before = asyncio.all_tasks()
        async with Pipeline(url, connections=2, depth=4) as pipe:
            async for given in pipe.stream(numbers(100)):
                assert given.label == "0"
                break
        gc.collect()
        assert await left_since(before) == set()


async def test_an_image_that_cannot_be_read_ends_the_map_and_leaves_nothing_behind(serving):
    with serving(lambda connection, _: echo(connection)) as url:
        before = asyncio.all_tasks()
        async with Pipeline(url) as pipe:
            with pytest.raises(FileNotFoundError):
                await pipe.map([*numbers(10), "/none.png", *numbers(10)])
            assert await left_since(before) == set()
            assert labels(await pipe.map(numbers(3))) == ["0", "1", "2"]


async def test_what_is_under_way_when_it_closes_abstains(serving):
    with serving(lambda connection, _: [None for _ in bodies(connection)]) as url:
        async with Pipeline(url, connections=1, depth=2) as pipe:
            tasks = [asyncio.create_task(pipe.gate(image)) for image in numbers(5)]
            await asyncio.sleep(0.1)
        answers = await asyncio.wait_for(asyncio.gather(*tasks), 5)
        assert [given.reasons for given in answers] == [("unavailable",)] * 5
        assert (await pipe.gate(b"late")).error == "the pipeline is closed"


async def test_large_images_do_not_pile_up(serving):
    """A server that reads slowly holds up the writing, and gets everything in the end."""
    image = bytes(2 * 2**20)

    def handle(connection, number):
        time.sleep(0.2)
        for body in bodies(connection):
            connection.sendall(answer(str(len(body))))

    with serving(handle) as url:
        async with Pipeline(url, connections=1, depth=4) as pipe:
            answers = await pipe.map([image] * 12)
    assert labels(answers) == [str(len(image))] * 12


@pytest.mark.parametrize("settings", [{"connections": 0}, {"depth": 0}])
async def test_numbers_that_make_no_pipeline(settings):
    with pytest.raises(ValueError, match="at least 1"):
        Pipeline("http://gate", **settings)
