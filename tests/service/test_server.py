"""The command line's server with one process."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.service.running import server


def test_it_says_in_one_line_what_it_serves(bundle_path, png):
    with server(bundle_path) as running:
        assert len(running.lines) == 1
        (line,) = running.lines
        assert str(bundle_path) in line
        assert re.search(r"sha256:[0-9a-f]{12}, 10 members, onnx on cpu", line)
        assert f"curl --data-binary @image.png -H 'Content-Type: image/png' {running.url}" in line
        answer = httpx.post(
            f"{running.url}/predict", content=png, headers={"Content-Type": "image/png"}
        )
        assert answer.status_code == 200
        assert "server" not in answer.headers


SLOW = """
import time
from service.runtime import onnx
plain = onnx.OnnxRuntime.evaluate
def slow(self, seen, until, images):
    import pathlib
    if pathlib.Path({flag!r}).exists():
        pathlib.Path({flag!r} + ".entered").touch()
        while pathlib.Path({flag!r}).exists():
            time.sleep(0.01)
    return plain(self, seen, until, images)
onnx.OnnxRuntime.evaluate = slow
"""


def test_sigterm_drains_and_loses_no_request(bundle_path, png, tmp_path):
    flag = tmp_path / "hold"
    answers: list[int] = []
    with server(
        bundle_path, "--drain-seconds", "2", prelude=SLOW.format(flag=str(flag))
    ) as running:

        def ask() -> None:
            answer = httpx.post(f"{running.url}/predict", content=png, timeout=30)
            answers.append(answer.status_code)

        assert httpx.get(f"{running.url}/readyz").status_code == 200
        flag.touch()
        before = threading.Thread(target=ask)
        before.start()
        while not flag.with_name("hold.entered").exists():
            time.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        running.wait_for_line("draining")
        assert httpx.get(f"{running.url}/readyz").status_code == 503
        assert httpx.get(f"{running.url}/livez").status_code == 200
        during = threading.Thread(target=ask)
        during.start()
        running.wait_for_line("stopping")
        flag.unlink()
        before.join(30)
        during.join(30)
        assert answers == [200, 200]
        assert running.finish() == 0
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{running.url}/livez")
        assert not any("Traceback" in line for line in running.lines)


def test_interrupt_stops_at_once(bundle_path):
    with server(bundle_path, "--drain-seconds", "600") as running:
        running.process.send_signal(signal.SIGINT)
        assert running.finish() == 0


def test_a_second_signal_ends_the_drain(bundle_path):
    with server(bundle_path, "--drain-seconds", "600") as running:
        running.process.send_signal(signal.SIGTERM)
        running.wait_for_line("draining")
        running.process.send_signal(signal.SIGTERM)
        assert running.finish() == -signal.SIGTERM


def test_clients_that_misbehave_leave_no_trace(bundle_path, png):
    head = b"POST /predict HTTP/1.1\r\nHost: gate\r\nContent-Type: image/png\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(png) + png
    beginnings = [b"", b"nonsense\r\n\r\n", head, whole[:-9], whole, 3 * whole, whole + b"\0"]
    with server(bundle_path) as running:
        host, port = running.url.removeprefix("http://").split(":")
        for beginning in 20 * beginnings:
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(beginning)
        answer = httpx.post(f"{running.url}/predict", content=png)
        assert answer.status_code == 200
        metrics = httpx.get(f"{running.url}/metrics").text
        assert "gate_queue_images 0.0" in metrics
        assert 'code="500"' not in metrics
        health = [sys.executable, "-m", "service", "health", "--url", running.url]
        assert subprocess.run(health, capture_output=True, timeout=60).stdout == b"ready\n"
        running.process.send_signal(signal.SIGINT)
        assert running.finish() == 0
        assert not any("Traceback" in line for line in running.lines)


WATCH = """
import ipaddress, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto"):
        address = arguments[1]
        if isinstance(address, tuple) and not ipaddress.ip_address(address[0]).is_loopback:
            raise SystemExit(f"left the machine: {event} {address}")
    if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", None):
        raise SystemExit(f"asked for {arguments[0]}")
sys.addaudithook(watch)
"""


def test_nothing_leaves_the_machine(bundle_path, png):
    with server(bundle_path, "--drain-seconds", "0", prelude=WATCH) as running:
        with httpx.Client(base_url=running.url) as client:
            assert client.post("/predict", content=png).status_code == 200
            assert client.post("/predict", files={"files": png}).status_code == 200
            for path in ("/docs", "/openapi.json", "/metrics", "/models", "/readyz"):
                assert client.get(path).status_code == 200
        running.process.send_signal(signal.SIGTERM)
        assert running.finish() == 0
        assert not any("left the machine" in line for line in running.lines)


def test_a_port_that_is_taken(bundle_path):
    with server(bundle_path) as running:
        port = running.url.rpartition(":")[2]
        command = [sys.executable, "-m", "service", "serve", "--bundle", str(bundle_path)]
        second = subprocess.run(
            [*command, "--port", port], capture_output=True, text=True, timeout=60
        )
        assert second.returncode != 0
        assert "Traceback" not in second.stderr
        assert "address already in use" in second.stderr


def test_memory_of_a_running_server(bundle_path, png):
    """The bound of the whole, with a bundle of almost no weight."""
    with server(bundle_path) as running:
        for _ in range(20):
            httpx.post(f"{running.url}/predict", content=png)
        status = Path(f"/proc/{running.process.pid}/status")
        if not status.exists():
            pytest.skip("no /proc here")
        (resident,) = re.findall(r"VmRSS:\s+(\d+) kB", status.read_text())
        assert int(resident) < 300_000
