"""The short way to `POST /predict`, over connections that end in this process."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
from contextlib import asynccontextmanager
from itertools import pairwise, product
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from starlette.datastructures import State
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import Config, ServerState

from service import intake
from service.api import exchange
from service.api.answering import SMALL_PIXELS
from service.api.body import SMALL_BYTES
from service.api.express import ExpressProtocol
from service.app import create_app
from service.runtime import everything
from service.server import configure
from tests.waiting import until

pytestmark = pytest.mark.anyio

PATIENCE = 20
COUNTERS = r"gate_(http_requests|decisions|rejected|cache_hits|inference_\w+)_total"
OPTIONS = ["", "?policy=quick", "?members=all", "?explain=true", "?top_k=1", "?fdr=0.1"]
OPTIONS += ["?background=true", "?"]
BAD_OPTIONS = ["?alpha=2", "?policy=none", "?alhpa=1", "?top_k=4", "?fdr=0.1&alpha=0.1"]
TYPES = ["image/png", "application/octet-stream", "image/png; q=1", "IMAGE/PNG"]
TYPES += ["application/json", "text/plain", None]
CHUNKED = {"content_length": None, "transfer_encoding": "chunked"}
PART = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a"\r\n\r\n%s\r\n--x--'
TIGHT = {"max_queue_images": 1, "max_batch_images": 1}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def read(written):
    """The whole answers in what was written, but not how long they took; and what is left."""
    answers = []
    while b"\r\n\r\n" in written:
        head, _, rest = written.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        assert len(headers) == len(lines), "none is said twice"
        length = int(headers.pop("content-length", "0"))
        if len(rest) < length:
            break
        body, written = re.sub(rb'"timing_ms":{.*?}', b'"":0', rest[:length]), rest[length:]
        if status != "HTTP/1.1 100 Continue":
            answers.append(Answer(int(status.split()[1]), headers, body))
    return answers, written


def nameless(answer):
    """An answer without the request's id."""
    headers = {name: value for name, value in answer.headers.items() if name != "x-request-id"}
    body = re.sub(rb'"request_id":"[^"]*"', b'"request_id":""', answer.body)
    return Answer(answer.status, headers, body)


class Connection(asyncio.Transport):
    """The server's end of a connection, which keeps what is written; and what its client does."""

    def __init__(self, protocol):
        super().__init__({"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 8000)})
        self.protocol, self.written, self.closed = protocol, b"", False
        self.may_read = asyncio.Event()
        self.pause_reading, self.resume_reading = self.may_read.clear, self.may_read.set
        self.resume_reading()
        protocol.connection_made(self)

    def write(self, data):
        assert not self.closed, "written after the end"
        self.written += data

    def is_closing(self):
        return self.closed

    def close(self):
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    async def send(self, *pieces):
        for piece in pieces:
            await self.may_read.wait()
            self.protocol.data_received(piece)

    async def answers(self, count):
        await until(lambda: len(read(self.written)[0]) >= count)
        (answers, rest), self.written = read(self.written), b""
        assert (len(answers), rest) == (count, b"")
        return answers

    async def ask(self, *pieces):
        await self.send(*pieces)
        return (await self.answers(1))[0]


class Served(NamedTuple):
    config: Config
    state: State  # of the application
    server_state: ServerState
    long_way: list[str]  # paths that the application was asked for

    def connect(self, protocol=ExpressProtocol):
        return Connection(protocol(self.config, self.server_state, {}))

    async def plainly(self, asked):
        return await self.connect(HttpToolsProtocol).ask(asked)

    def counted(self):
        lines = self.state.metrics.text().decode().splitlines()
        return [line for line in lines if re.match(COUNTERS, line)]


@pytest.fixture
def serve(settings, model):
    """Serve an application, and see that in the end nothing is occupied any more."""

    @asynccontextmanager
    async def make(other=None, **changes):
        changed = settings.model_copy(update=changes)
        app = create_app(changed, other or model)
        served = Served(configure(app, changed), app.state, ServerState(), [])
        served.config.load()
        application = served.config.loaded_app

        async def noting(scope, receive, send):
            served.long_way.append(scope["path"])
            await application(scope, receive, send)

        served.config.loaded_app = noting
        served.server_state.default_headers = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")]
        async with app.router.lifespan_context(app):
            yield served
            await until(lambda: not served.server_state.tasks)
            gate, buffers = app.state.gate, app.state.buffers
            assert (gate.door.under_way, buffers.used, gate.scheduler.queued) == (0, 0, 0)

    return make


@pytest.fixture
def held(model, with_logits):
    """A model whose steps wait until they are let go."""
    entered, release = threading.Event(), threading.Event()

    def logits(batch):
        entered.set()
        assert release.wait(PATIENCE)
        return everything(model.runtime, batch).logits

    yield SimpleNamespace(model=with_logits(logits), entered=entered, release=release)
    release.set()


def request(body, query="", line="POST /predict{} HTTP/1.1", **fields):
    """One request; a field that is None is left out."""
    usual = {"host": "gate", "x_request_id": "mine", "content_type": "image/png"}
    given = usual | {"content_length": str(len(body))} | fields
    head = [f"{name.replace('_', '-')}: {value}" for name, value in given.items() if value]
    return "\r\n".join([line.format(query), *head, "", ""]).encode() + body


def document(images=1):
    return json.dumps({"images": [{"pixels": [[9] * 8] * 8}] * images}).encode()


def line_of(pixels):
    Image.new("L", (pixels, 1)).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("query", OPTIONS + BAD_OPTIONS)
async def test_it_says_the_same_as_the_framework(serve, png, query, caplog):
    caplog.set_level("INFO", "service.access")
    bodies = (png, png[:-20], png[:20], b"no image", b"GIF89a" + bytes(20), b"")
    async with serve(access_log=True) as short, serve(access_log=True) as long:
        here, there = short.connect(), long.connect(HttpToolsProtocol)
        for number, (body, kind) in enumerate(product(bodies, TYPES)):
            asked = request(body, query, content_type=kind, x_request_id=f"id-{number}")
            assert await here.ask(asked) == await there.ask(asked)
        assert short.counted() == long.counted()
        assert short.server_state.total_requests == long.server_state.total_requests
    lines = [each.getMessage() for each in caplog.records if each.name == "service.access"]
    assert re.fullmatch(r"id-0 POST /predict \d+ \d+\.\d ms", lines[0])
    assert [each.split()[:4] for each in lines[::2]] == [each.split()[:4] for each in lines[1::2]]
    taken = len(long.long_way) - len(short.long_way)
    assert taken == (4 if query in OPTIONS else 0), "two images that can be opened, of two types"


WAYS = {  # whether it is the short one, and a request
    "an image": (True, bytes, {}),
    "options": (True, bytes, {"query": "?policy=strict&top_k=2", "accept": "*/*"}),
    "few bytes": (True, lambda png: png.ljust(SMALL_BYTES, b"\0"), {}),
    "few pixels": (True, lambda png: line_of(SMALL_PIXELS), {}),
    "the last": (True, bytes, {"connection": "close"}),
    "many bytes": (False, lambda png: png.ljust(SMALL_BYTES + 1, b"\0"), {}),
    "many pixels": (False, lambda png: line_of(SMALL_PIXELS + 1), {}),
    "a form": (False, lambda png: PART % png, {"content_type": "multipart/form-data; boundary=x"}),
    "JSON": (False, lambda _: document(), {"content_type": "application/json"}),
    "chunks": (False, lambda png: b"%x\r\n%s\r\n0\r\n\r\n" % (len(png), png), CHUNKED),
    "compressed": (False, bytes, {"content_encoding": "gzip"}),
    "not compressed": (False, bytes, {"content_encoding": "identity"}),
    "a question first": (False, bytes, {"expect": "100-continue"}),
    "an upgrade": (False, bytes, {"connection": "upgrade", "upgrade": "h2c"}),
    "from a proxy": (True, bytes, {"x_forwarded_for": "192.0.2.7"}),
    "old HTTP": (False, bytes, {"line": "POST /predict HTTP/1.0"}),
    "invalid options": (False, bytes, {"query": "?alpha=2"}),
    "options not to be had": (False, bytes, {"query": "?policy=none"}),
    "no route": (False, bytes, {"line": "POST /predicts HTTP/1.1"}),
    "another method": (False, bytes, {"line": "PUT /predict HTTP/1.1"}),
    "another spelling": (False, bytes, {"line": "POST /%70redict HTTP/1.1"}),
    "a whole URL": (False, bytes, {"line": "POST http://gate/predict HTTP/1.1"}),
}


@pytest.mark.parametrize(("short", "make", "fields"), WAYS.values(), ids=WAYS)
async def test_which_way_it_goes(serve, png, short, make, fields):
    asked = request(make(png), **fields)
    async with serve() as served:
        here, there = served.connect(), served.connect(HttpToolsProtocol)
        answer = await here.ask(asked)
        assert len(served.long_way) == (0 if short else 1)
        assert answer == await there.ask(asked)
        assert here.closed == there.closed == ("connection" in answer.headers)


async def test_what_is_known_goes_the_short_way(serve, png):
    async with serve(cache_images=8) as served:
        connection = served.connect()
        answers = [await connection.ask(request(png)) for _ in range(3)]
        assert served.long_way == []
        assert [await served.plainly(request(png)), *answers] == [answers[0]] * 4
        counted = {"gate_cache_hits_total 3.0", "gate_inference_images_total 1.0"}
        assert counted <= set(served.counted())
        await connection.send(request(png) + request(line_of(9)))
        connection.protocol.timeout_keep_alive_handler()
        assert not connection.closed, "the second is under way"
        await connection.answers(2)


async def test_requests_that_do_not_wait_are_answered_in_order(serve, png):
    async with serve() as served:
        connection = served.connect()
        await connection.send(*(request(png, x_request_id=name) for name in "abc"))
        answers = await connection.answers(3)
        assert [answer.headers["x-request-id"] for answer in answers] == list("abc")
        assert len(served.long_way) == 2, "the first went the short way"


async def test_answers_wait_for_a_client_that_does_not_read_them(serve, png):
    async with serve() as served:
        connection = served.connect()
        connection.protocol.pause_writing()  # as a transport does whose buffer is full
        await connection.send(request(png))
        await until(lambda: any("decisions" in line for line in served.counted()))
        assert connection.written == b""
        connection.protocol.resume_writing()
        assert (await connection.answers(1))[0].status == 200


async def test_wherever_a_request_is_cut_the_answer_is_the_same(serve, png):
    whole = request(png)
    async with serve() as served:
        answer = await served.plainly(whole)
        for place in range(1, len(whole)):
            assert await served.connect().ask(whole[:place], whole[place:]) == answer
        assert len(served.long_way) == 1 + len(png), "those of which some of the body came later"


async def test_a_head_that_was_read_is_not_read_again(serve, png):
    async with serve() as served:
        first, again = (served.connect() for _ in range(2))
        asked = request(png, x_request_id=None)
        answer = nameless(await first.ask(asked))
        again.protocol.parser = None
        assert nameless(await again.ask(asked)) == nameless(await again.ask(asked)) == answer
        no_image = request(bytes(len(png)), x_request_id=None)
        assert no_image.startswith(asked[: -len(png)])
        refused = nameless(await first.ask(no_image))
        assert refused == nameless(await served.plainly(no_image))
        assert (refused.status, served.long_way) == (422, ["/predict"] * 2)


async def test_a_known_head_is_read_when_others_are_under_way(serve, png, held):
    async with serve(held.model) as served:
        connection, asked = served.connect(), request(png, x_request_id=None)
        await connection.send(asked)
        await until(held.entered.is_set)
        await connection.send(asked)
        held.release.set()
        first, second = map(nameless, await connection.answers(2))
        assert first == second
        assert served.long_way == ["/predict"], "the second waited for the first"


async def test_a_connection_is_closed_when_it_has_been_idle(serve, png):
    async with serve() as served:
        served.config.timeout_keep_alive = 0.2
        connection, asked = served.connect(), request(png, x_request_id=None)
        loop = asyncio.get_running_loop()
        for _ in range(6):
            sent = loop.time()
            await connection.ask(asked)
            await asyncio.sleep(0.08)
        assert not connection.closed, "0.2 s have passed since the first, but not since the last"
        await until(lambda: connection.closed)
        assert loop.time() - sent >= 0.2
        served.config.timeout_keep_alive = 75
        assert served.long_way == []


@pytest.mark.parametrize("name", ["mine", None])
async def test_however_requests_are_cut_the_answers_are_the_same_and_in_order(serve, png, name):
    kinds = [request(make(png), x_request_id=name, **fields) for _, make, fields in WAYS.values()]
    kinds = [kind for kind in kinds if not re.search(b"connection: |HTTP/1.0", kind)]
    rng = np.random.default_rng(seed := 5)
    print("seed", seed)
    async with serve(cache_images=1) as served:
        plain = [nameless(await served.plainly(kind)) for kind in kinds]
        for _ in range(40):
            numbers = rng.integers(0, len(kinds), 6) // rng.integers(1, 5)
            stream, connection = b"".join(kinds[each] for each in numbers), served.connect()
            ends = np.cumsum([len(kinds[each]) for each in numbers])
            cuts = np.sort([0, *rng.choice(ends, 4), *rng.integers(0, len(stream), 3), len(stream)])
            for piece in pairwise(cuts):
                await connection.send(stream[slice(*piece)])
                for _ in range(rng.integers(0, 20)):
                    await asyncio.sleep(0)
            answers = [nameless(answer) for answer in await connection.answers(6)]
            assert answers == [plain[each] for each in numbers]
        assert len(kinds) < len(served.long_way) < len(kinds) + 6 * 40, "both ways"


async def test_a_stop_lets_a_request_be_answered(serve, png, held):
    async with serve(held.model) as served:
        connection, answered = served.connect(), served.connect()
        await connection.send(request(png))
        await until(held.entered.is_set)
        connection.protocol.shutdown()
        assert not connection.closed
        held.release.set()
        (answer,) = await connection.answers(1)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await answered.ask(request(png))
        answered.protocol.shutdown()
        assert (connection.closed, answered.closed, served.long_way) == (True, True, [])


async def test_a_client_that_leaves_gives_its_place_back(serve, png, held):
    async with serve(held.model) as served:
        gate = served.state.gate
        running, waiting, hurried, staying = (served.connect() for _ in range(4))
        await running.send(request(png))
        await until(held.entered.is_set)
        await waiting.send(request(png))
        await staying.send(request(png))
        assert gate.scheduler.queued == 2
        running.close()
        waiting.close()
        await until(lambda: gate.scheduler.queued == gate.door.under_way == 1)
        assert 'gate_rejected_total{reason="cancelled"} 2.0' in served.counted()
        await hurried.send(request(png) * 2)
        hurried.close()
        held.release.set()
        assert (await staying.answers(1))[0].status == 200
        await until(lambda: gate.door.under_way == 0)
        assert running.written == waiting.written == hurried.written == b""
        assert any('code="499"' in line and line.endswith(" 3.0") for line in served.counted())
        assert served.long_way == [], "what was not begun is not"


REFUSALS = {  # images ahead, options, settings, whether it goes the long way, status, reason
    "a full door": (1, "", TIGHT, False, 503, "queue_full"),
    "a full queue": (2, "", TIGHT | {"max_queue_images": 2}, False, 503, "queue_full"),
    "no room behind": (0, "?background=true", TIGHT, False, 503, "queue_full"),
    "a stop": (1, "", TIGHT, False, 503, "draining"),
    "no time": (0, "", {"request_timeout_seconds": 0.05}, False, 504, "deadline"),
    "no room for bodies": (0, "", {"max_buffered_bytes": 10}, True, 503, "queue_full"),
    "too many bytes": (0, "", {"max_body_bytes": 10}, True, 413, "payload"),
}


@pytest.mark.parametrize("kind", REFUSALS)
async def test_refusals_are_those_of_the_framework(serve, png, held, kind, monkeypatch):
    ahead, query, limits, long, status, reason = REFUSALS[kind]
    async with serve(held.model, **limits) as served:
        if ahead:
            await served.connect().send(request(document(ahead), content_type="application/json"))
            await until(held.entered.is_set)
        if kind == "a full door":
            monkeypatch.setattr(exchange, "open_sent", None)  # no image is opened
        served.state.draining = reason == "draining"
        refused = await served.connect().ask(request(png, query))
        assert len(served.long_way) == (ahead > 0) + long
        assert (refused.status, "retry-after" in refused.headers) == (status, status == 503)
        assert f'gate_rejected_total{{reason="{reason}"}} 1.0' in served.counted()
        assert refused == await served.plainly(request(png, query))
        assert f'gate_rejected_total{{reason="{reason}"}} 2.0' in served.counted()
        held.release.set()


async def test_each_refusal_tells_its_own_request(serve, png, held):
    names = ["a", "b", "longer", None, None]
    async with serve(held.model, **TIGHT) as served:
        under_way = served.connect()
        await under_way.send(request(png))
        await until(held.entered.is_set)
        connection, told = served.connect(), []
        for name in names:
            asked = request(png, x_request_id=name)
            refused = await connection.ask(asked)
            told.append(refused.headers["x-request-id"])
            assert json.loads(refused.body)["request_id"] == told[-1]
            assert nameless(refused) == nameless(await served.plainly(asked))
        assert told[:3] == names[:3]
        assert len(set(told)) == 5
        assert not connection.closed
        last = await connection.ask(request(png, connection="close"))
        assert (last.status, last.headers["connection"], connection.closed) == (503, "close", True)
        assert served.server_state.total_requests == 11
        held.release.set()
        assert (await under_way.answers(1))[0].status == 200


async def test_a_model_that_raises_is_our_fault(serve, png, with_logits):
    async with serve(with_logits(lambda batch: batch.no_such_thing)) as served:
        failed = await served.connect().ask(request(png))
        assert (failed.status, served.long_way) == (500, [])
        assert failed == await served.plainly(request(png))


@pytest.mark.parametrize("at", [(exchange, "content"), (intake, "_opened")], ids=lambda at: at[1])
async def test_an_unexpected_error_disturbs_no_other(serve, png, monkeypatch, caplog, at):
    usual, odd = getattr(*at), line_of(9)

    def explode(*given):
        if "id-1" in given or intake.Sent(odd, "/body") in given:
            raise KeyError("secret reason")
        return usual(*given)

    monkeypatch.setattr(*at, explode)
    async with serve() as served:
        connections = [served.connect() for _ in range(3)]
        for number, image in enumerate((png, odd, png)):
            await connections[number].send(request(image, x_request_id=f"id-{number}"))
        answers = [(await connection.answers(1))[0] for connection in connections]
        assert [answer.status for answer in answers] == [200, 500, 200]
        batch = served.state.metrics.registry.get_sample_value
        assert batch("gate_batch_size_sum") >= 2 * batch("gate_batch_size_count"), "in one step"
    assert answers[1].headers["content-type"] == "application/problem+json"
    assert b"secret" not in answers[1].body
    assert re.search(r"id-1: unexpected error(?s:.*)secret reason", caplog.text)
