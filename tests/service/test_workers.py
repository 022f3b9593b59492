"""Several processes behind one port."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.errors import StartupError
from service.port import listener, reserve
from service.workers import PAUSE_SECONDS, Failed, Ready, Worker, keep_complete
from tests.service.running import Server, server
from tests.waiting import eventually

TWO = ("--workers", "2")
COUNTED = r'gate_http_requests_total\{code="200",method="POST",route="/predict"\} ([\d.]+)'


class Caller:
    """A client whose every request is a new connection, so that any worker may get it."""

    def __init__(self, url: str, image: bytes) -> None:
        self.client = httpx.Client(base_url=url, headers={"Connection": "close"}, timeout=30)
        self.image = image
        self.answered = 0

    def ask(self) -> str:
        """Ask once; returns what all request ids of the process that answered begin with."""
        answer = self.client.post("/predict", content=self.image)
        assert answer.status_code == 200
        self.answered += 1
        return str(answer.json()["request_id"][:20])

    def ask_until_all_answered(self, count: int) -> set[str]:
        """Ask until so many have answered; none of 200 requests for one is a chance of 2⁻¹⁹⁹."""
        seen: set[str] = set()
        for _ in range(200):
            seen.add(self.ask())
            if len(seen) == count:
                return seen
        pytest.fail(f"{seen} answered, not {count} processes")

    def scrape(self) -> str:
        return self.client.get("/metrics").text

    def counted(self) -> float:
        return float(found[1]) if (found := re.search(COUNTED, self.scrape())) else 0.0


def processes_of(running: Server) -> list[int]:
    parent = running.process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children")
    if not children.exists():
        pytest.skip("no /proc here")
    pids = [int(pid) for pid in children.read_text().split()]
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def lives(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_both_answer_and_any_tells_the_sums(bundle_path, png, tmp_path):
    with server(bundle_path, *TWO, TMPDIR=str(tmp_path)) as running:
        assert len(running.lines) == 1
        assert "onnx on cpu, 2 workers)" in running.lines[0]
        caller = Caller(running.url, png)
        before = caller.ask_until_all_answered(2)
        eventually(lambda: caller.counted() == caller.answered)
        assert {caller.counted() for _ in range(20)} == {caller.answered}
        text = caller.scrape()
        assert len(re.findall(r"^gate_bundle_info\{.*\} 1\.0$", text, re.MULTILINE)) == 1
        assert len(re.findall(r"^gate_bundle_info", text, re.MULTILINE)) == 1
        assert "\ngate_queue_images 0.0\n" in text
        assert f"\ngate_inference_images_total {caller.answered:.1f}\n" in text
        assert f"\ngate_predictive_entropy_nats_count {caller.answered:.1f}\n" in text
        assert f'\ngate_members_evaluated_bucket{{le="+Inf"}} {caller.answered:.1f}\n' in text

        first, _ = processes_of(running)
        os.kill(first, signal.SIGKILL)
        running.wait_for_line(r"worker \d ended with status -9: another takes its place")
        assert caller.counted() == caller.answered
        running.wait_for_line(r"worker \d serves again")
        assert caller.counted() == caller.answered
        after = caller.ask_until_all_answered(2)
        assert len(before & after) == 1
        eventually(lambda: caller.counted() == caller.answered)
        assert "\ngate_queue_images 0.0\n" in caller.scrape()

        assert list(tmp_path.iterdir())
        running.process.send_signal(signal.SIGINT)
        assert running.finish() == 0
        assert list(tmp_path.iterdir()) == []
        assert not any("Traceback" in line for line in running.lines)


def test_a_signal_to_all_processes_drains_them_once(bundle_path, png):
    head = (
        b"POST /predict HTTP/1.1\r\nHost: gate\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    )
    request = head % len(png) + png
    with server(bundle_path, *TWO, "--drain-seconds", "1") as running:
        host, port = running.url.removeprefix("http://").split(":")
        half_sent = [socket.create_connection((host, int(port)), timeout=30) for _ in range(20)]
        for connection in half_sent:
            connection.sendall(request[:-9])
        os.killpg(running.process.pid, signal.SIGTERM)
        for _ in range(2):
            running.wait_for_line("worker . service.server: draining")
        with httpx.Client(base_url=running.url, headers={"Connection": "close"}) as client:
            assert {client.get("/readyz").status_code for _ in range(20)} == {503}
        for _ in range(2):
            running.wait_for_line("worker . service.server: stopping")
        for connection in half_sent:
            connection.sendall(request[-9:])
            assert connection.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
            connection.close()
        assert running.finish() == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))
        assert not any("Traceback" in line for line in running.lines)


def test_a_second_signal_ends_the_drain(bundle_path):
    with server(bundle_path, *TWO, "--drain-seconds", "600") as running:
        pids = processes_of(running)
        running.process.send_signal(signal.SIGTERM)
        running.wait_for_line("draining")
        running.process.send_signal(signal.SIGTERM)
        assert running.finish() == -signal.SIGTERM
        assert not any(map(lives, pids))


def test_workers_end_when_their_parent_is_killed(bundle_path, tmp_path):
    with server(bundle_path, *TWO, "--drain-seconds", "0", TMPDIR=str(tmp_path)) as running:
        pids = processes_of(running)
        running.process.kill()
        eventually(lambda: not any(map(lives, pids)))


@pytest.mark.parametrize("wrong", ["bundle", "port"])
def test_what_is_wrong_at_the_start_is_said_once(publish, bundle_path, wrong):
    bundle = publish() if wrong == "bundle" else bundle_path
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = 0 if wrong == "bundle" else taken.getsockname()[1]
        if wrong == "bundle":
            (bundle / "calibration.npz").write_bytes(b"other")
        command = [sys.executable, "-m", "service", "serve", *TWO]
        command += ["--bundle", str(bundle), "--port", str(port)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert {"bundle": "calibration.npz: sha256", "port": "already in use"}[wrong] in ended.stderr


def test_nothing_is_written_for_one_process(bundle_path, png, tmp_path):
    with server(bundle_path, TMPDIR=str(tmp_path)) as running:
        caller = Caller(running.url, png)
        caller.ask()
        assert caller.counted() == 1
        assert list(tmp_path.iterdir()) == []


class Ended:
    """Stands for a process that has ended."""

    exitcode = -11

    def kill(self) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...


DEATH = None


def keep(directory: Path, *scripts: list[Any]) -> list[tuple[int, float]]:
    """Keep two workers, each of which says the next script, until none is left.

    Returns the starts after the first two: in which place, and after which pause.
    """
    signals, bell = Pipe(duplex=False)
    left, ends, starts = list(scripts), [], []

    def start(place: int, pause: float) -> Worker:
        pipe, its_end = Pipe()
        ends.append(its_end)
        starts.append((place, pause))
        if not left:
            bell.send(signal.SIGTERM)
            return Worker(place, Ended(), pipe)  # type: ignore[arg-type]
        for word in left.pop(0):
            its_end.close() if word is DEATH else its_end.send(word)
        return Worker(place, Ended(), pipe)  # type: ignore[arg-type]

    crew = [start(0, 0.0), start(1, 0.0)]
    assert keep_complete(crew, start, directory, signals) == signal.SIGTERM
    assert [worker.place for worker in crew] == [0, 1]
    assert not left
    return starts[2:]


READY = Ready("serving")


def test_a_worker_that_served_is_replaced_at_once(tmp_path):
    assert keep(tmp_path, [READY], [READY, DEATH]) == [(1, 0.0)]


def test_a_replacement_that_fails_is_tried_again_after_a_pause(tmp_path):
    scripts = [READY], [READY, DEATH], [Failed("no memory")], [DEATH]
    paused = (1, PAUSE_SECONDS)
    assert keep(tmp_path, *scripts) == [(1, 0.0), paused, paused]


@pytest.mark.parametrize(
    ("scripts", "reason"),
    [
        ([[], [Failed("no such policy")]], "no such policy"),
        ([[READY], [DEATH]], "worker 1 ended with status -11"),
        ([[READY, DEATH], [READY, DEATH], [Failed("no such file")], []], "no such file"),
    ],
)
def test_it_gives_up_when_none_would_serve(tmp_path, scripts, reason):
    with pytest.raises(StartupError, match=reason):
        keep(tmp_path, *scripts)


def test_sockets_of_one_port():
    with reserve("127.0.0.1", 0) as port, listener(port) as first, listener(port) as second:
        address = port.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        first.listen()
        with pytest.raises(StartupError, match=rf"127\.0\.0\.1, port {address[1]}: .*in use"):
            reserve(*address)
        second.listen()
        socket.create_connection(address).close()


@pytest.mark.parametrize(("cpus", "workers", "threads"), [(5, 1, 5), (5, 2, 2), (2, 3, 1)])
def test_workers_share_the_cpus(monkeypatch, settings, model, cpus, workers, threads):
    from service import runtime
    from service.runtime import onnx

    taken = []
    monkeypatch.setattr(runtime, "available_cpus", lambda: cpus)
    monkeypatch.setattr(onnx, "open_runtime", lambda *arguments: taken.append(arguments[2]))
    runtime.choose(model.bundle, settings.model_copy(update={"workers": workers, "threads": 0}))
    assert taken == [threads]
