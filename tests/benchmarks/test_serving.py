from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from benchmarks.serving import closed, openloop, traffic
from benchmarks.serving.peers import ensemble
from benchmarks.serving.peers.install import HERE, PEERS
from benchmarks.serving.servers import ServerError
from models import bundle as bundles
from models import uncertainty
from models.preprocessing import prepare
from training.data import Dataset, from_arrays

BUNDLE = Path("models/pretrained/mnist/1")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\ncontent-length: 4\r\n\r\nlong"
Reply = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def server(reply: Reply) -> Iterator[int]:
    """A port where `reply` is called with the body of a request, a number."""
    ports: SimpleQueue[int] = SimpleQueue()
    stop = threading.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
                await reply(int(await reader.readexactly(length)), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def listen() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
            ports.put(listening.sockets[0].getsockname()[1])
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(listen(),))
    thread.start()
    try:
        yield ports.get(timeout=5)
    finally:
        stop.set()
        thread.join()


def numbered(count: int) -> list[bytes]:
    return traffic.single("/predict", (str(index).encode() for index in range(count)))


async def answer_all(_: int, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


def test_latency_counts_from_the_schedule() -> None:
    """Five requests are due at once, one connection answers each after 30 ms."""

    async def slowly(_: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.03)
        writer.write(OK)

    with server(slowly) as port:
        outcome = openloop.drive(port, numbered(5), np.zeros(5), 5.0, connections=1)
    assert (outcome.status == 200).all()
    turns = np.arange(5)
    assert (outcome.latency >= 0.03 * (turns + 1) - 1e-3).all()
    assert (outcome.lag >= 0.03 * turns - 1e-3).all()
    assert outcome.latency[0] < 0.03 * 5


def test_requests_wait_for_no_answer() -> None:
    """Ten requests 5 ms apart, each answered after 100 ms, are all out before the first answer."""
    out, most = 0, 0

    async def slowly(_: int, writer: asyncio.StreamWriter) -> None:
        nonlocal out, most
        out += 1
        most = max(most, out)
        await asyncio.sleep(0.1)
        out -= 1
        writer.write(OK)

    due = 0.005 * np.arange(10)
    with server(slowly) as port:
        outcome = openloop.drive(port, numbered(10), due, 5.0)
    assert most == 10
    assert (outcome.latency >= 0.1 - 1e-3).all()


def test_a_connection_is_used_again() -> None:
    peers = set()

    async def note(_: int, writer: asyncio.StreamWriter) -> None:
        peers.add(writer.get_extra_info("peername"))
        writer.write(OK[:25])
        await asyncio.sleep(0.002)
        writer.write(OK[25:])

    with server(note) as port:
        outcome = openloop.drive(port, numbered(7), 0.05 * np.arange(7), 5.0)
    assert (outcome.status == 200).all()
    assert len(peers) < 7


def test_refusals_are_counted_and_how_fast_they_come() -> None:
    async def refuse_odd(index: int, writer: asyncio.StreamWriter) -> None:
        writer.write(REFUSAL if index % 2 else OK)

    with server(refuse_odd) as port:
        outcome = openloop.drive(port, numbered(10), 0.01 * np.arange(20), 2.0)
    found = openloop.figures(outcome, 2.0, 1.0)
    assert outcome.status.tolist() == [200, 503] * 10
    assert found["refused"] == found["failed"] == 0.5
    assert found["retry_after"] == 1
    assert found["goodput"] == 10
    assert found["offered"] == 20
    assert 0 < (found["refusal_p99_ms"] or 0) < 2000
    assert found["p99_ms"] == 2000


def test_a_client_hangs_up_on_what_is_late_and_goes_on_after_what_breaks() -> None:
    async def break_some(index: int, writer: asyncio.StreamWriter) -> None:
        if index == 1:
            return
        if index == 3:
            writer.close()
        elif index == 5:
            writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        else:
            writer.write(OK)

    with server(break_some) as port:
        outcome = openloop.drive(port, numbered(8), 0.02 * np.arange(8), 0.3)
    assert outcome.status.tolist() == [200, 0, 200, 0, 200, 200, 200, 200]
    assert np.isnan(outcome.latency[[1, 3]]).all()
    found = openloop.figures(outcome, 0.3, 0.16)
    assert found["failed"] == 0.25
    assert found["p99_ms"] == pytest.approx(300)
    assert found["retry_after"] is None


def test_what_finds_no_connection_in_time_is_not_sent() -> None:
    async def never(_: int, __: asyncio.StreamWriter) -> None:
        pass

    with server(never) as port:
        outcome = openloop.drive(port, numbered(3), np.zeros(3), 0.05, connections=1)
    assert outcome.status.tolist() == [0, 0, 0]
    assert np.isnan(outcome.lag).tolist() == [False, True, True]


def test_an_answer_without_length_is_refused() -> None:
    async def chunked(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    with server(chunked) as port, pytest.raises(ServerError, match="Content-Length"):
        openloop.drive(port, numbered(1), np.zeros(1), 1.0)


def test_goodput_counts_no_answer_after_the_schedule() -> None:
    due, latency = np.array([0.1, 0.5, 0.9, 0.9]), np.array([0.2, 0.3, 0.2, 0.05])
    status = np.array([200, 200, 200, 503])
    outcome = openloop.Outcome(due, np.zeros(4), latency, status, np.zeros(4, np.bool_))
    found = openloop.figures(outcome, 1.0, 1.0)
    assert found["goodput"] == 2
    assert found["failed"] == found["refused"] == 0.25
    assert found["retry_after"] == 0


def test_arrivals_are_a_poisson_process() -> None:
    """Count and mean of the moments, each within 4 standard errors."""
    seed, rate, seconds = 5, 1000.0, 4.0
    print(f"seed {seed}")
    due = openloop.arrivals(rate, seconds, seed)
    expected = rate * seconds
    assert abs(len(due) - expected) < 4 * np.sqrt(expected)
    assert abs(due.mean() - seconds / 2) < 4 * seconds / np.sqrt(12 * len(due))
    assert (np.diff(due) >= 0).all()
    assert (due == openloop.arrivals(rate, seconds, seed)).all()


def test_percentile_is_the_nearest_rank() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 201.0))
    assert openloop.percentile(values, 50) == 100
    assert openloop.percentile(values, 99) == 198
    assert openloop.percentile(values, 99.9) == 200
    assert openloop.percentile(np.array([]), 50) is None


def test_closed_figures_count_answers_of_status_200() -> None:
    counted = {"answers": 110, "refused": 10, "broken": 15, "microseconds": 2e6}
    found = closed.figures({**counted, "p50": 1000, "p99": 2000, "p999": 3000})
    assert found["throughput"] == 50
    assert found["failed"] == pytest.approx(0.2)
    assert (found["p50_ms"], found["p99_ms"], found["p999_ms"]) == (1, 2, 3)
    with pytest.raises(ServerError, match="no request"):
        closed.figures({**counted, "refused": 110})


def test_peers_summarise_as_the_project_does() -> None:
    randomness = np.random.default_rng(3)
    scale = np.array([0.1, 3, 30, 300]).reshape(-1, 1, 1)
    logits = (scale * randomness.normal(size=(4, 32, 10))).astype(np.float32)
    probabilities, total, expected = ensemble.summarise(logits)
    exact = uncertainty.summarise(logits)
    assert probabilities == pytest.approx(exact.probabilities, abs=1e-6)
    assert total == pytest.approx(exact.predictive_entropy, abs=1e-5)
    assert expected == pytest.approx(exact.expected_entropy, abs=1e-5)


def test_a_peer_answers_for_the_tensor_that_the_project_prepares() -> None:
    opened = ensemble.Ensemble.open(BUNDLE)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), np.uint8)
    pixels[:, :4] = pixels[:, -4:] = 0
    loaded = bundles.load(BUNDLE)
    images = [opened.decode(traffic.to_png(image)) for image in pixels]
    assert np.stack(images) == pytest.approx(prepare(pixels, loaded.manifest.input)[0], abs=1e-5)
    (logits,) = opened.session.run(["logits"], {"images": np.stack(images)})
    exact = uncertainty.summarise(logits)
    for index, found in enumerate(opened.answers(images)):
        information = exact.mutual_information[index]
        assert list(found["probabilities"]) == list(loaded.manifest.labels)
        assert list(found["probabilities"].values()) == pytest.approx(
            exact.probabilities[index], abs=1e-6
        )
        assert found["label"] == loaded.manifest.labels[exact.probabilities[index].argmax()]
        assert found["mutual_information"] == pytest.approx(information, abs=1e-5)
        assert found["flag"] is bool(information > ensemble.FLAG_ABOVE)


def test_traffic_is_digits_with_5_percent_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, part: str, data_dir: Path) -> Dataset:
        value = {"mnist": 0, "notmnist": 255}[name]
        images = np.full((10_000, 28, 28, 1), value, np.uint8)
        return from_arrays(images, np.zeros(10_000, np.int64), ("any",), name=name)

    monkeypatch.setattr(traffic, "load", load)
    pngs = traffic.images(Path())
    assert len(pngs) == 2000
    assert sum(png == traffic.to_png(np.full((28, 28, 1), 255, np.uint8)) for png in pngs) == 100


def test_requests_say_their_length(tmp_path: Path) -> None:
    pngs = [bytes([65 + index]) * (index + 1) for index in range(5)]
    forms = traffic.multipart("/predict", pngs, 2)
    assert [form.count(b'name="files"') for form in forms] == [2, 2]
    for request in [*traffic.single("/predict", pngs), *forms]:
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
    stored = traffic.save(forms, tmp_path / "forms").read_bytes()
    length, _, rest = stored.partition(b"\n")
    assert rest[: int(length)] == forms[0]
    assert rest[int(length) :].startswith(b"%d\n" % len(forms[1]))


ALONE = """
import subprocess, sys, time
from benchmarks.serving.processes import adopt_orphans, end, usage
from benchmarks.serving.servers import Server, ServerError, running
adopt_orphans()
shell = "(sleep 60 & sleep 60) & trap '' TERM; sleep 60"
process = subprocess.Popen(["sh", "-c", shell], start_new_session=True)
while usage().megabytes < 1: time.sleep(0.01)
end(process, 0.1)
print(usage().megabytes)
try:
    with running(Server("none", ["sh", "-c", "echo first; echo the last line; exit 3"]), "0", b""):
        pass
except ServerError as error:
    print(error)
"""


def test_no_process_is_left_and_a_failed_start_says_its_last_line() -> None:
    """In a process of its own, whose descendants may all be ended."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["0.0", "ended: the last line"]


def test_every_peer_has_an_app_and_pinned_requirements() -> None:
    for name in PEERS:
        assert (HERE / f"{name}_app.py").exists()
        lines = (HERE / f"{name}.txt").read_text().split()
        assert all("==" in line for line in lines)
        assert any(line.startswith(name) for line in lines)
