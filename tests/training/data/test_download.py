from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from training.data import DataError, load
from training.data import download as download_module
from training.data.download import download
from training.data.idx import content_sha256, read_idx
from training.data.sources import SOURCES, SourceFile
from training.data.store import Store

IMAGES = "mnist/t10k-images-idx3-ubyte.gz"
LABELS = "mnist/t10k-labels-idx1-ubyte.gz"

Answer = Callable[[BaseHTTPRequestHandler], None]


class Mirror:
    """A server on this machine that answers each path as a test tells it to."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                mirror.answers[self.path](self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}{path}"


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    mirror = Mirror()
    mirror.thread.start()
    yield mirror
    mirror.server.shutdown()
    mirror.thread.join()
    mirror.server.server_close()


def send(content: bytes, declared: int | None = None, encoding: str | None = None) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content) if declared is None else declared))
        if encoding:
            handler.send_header("Content-Encoding", encoding)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def fail(handler: BaseHTTPRequestHandler) -> None:
    handler.send_error(503)


@pytest.fixture
def images(samples: Path) -> bytes:
    return (samples / "mnist-images-idx3-ubyte.gz").read_bytes()


@pytest.fixture
def source(samples: Path, images: bytes, mirror: Mirror) -> SourceFile:
    content = content_sha256(read_idx(samples / "mnist-images-idx3-ubyte.gz"))
    urls = (mirror.url("/first"), mirror.url("/second"))
    return replace(SOURCES[IMAGES], size=len(images), digest="", content_sha256=content, urls=urls)


@pytest.fixture
def served(source: SourceFile, images: bytes, mirror: Mirror) -> SourceFile:
    """A source whose mirrors work."""
    mirror.answers = {"/first": send(images), "/second": send(images)}
    return source


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_set_is_downloaded_once_and_then_read_from_disk(
    samples: Path, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, sample in ((IMAGES, "mnist-images-idx3"), (LABELS, "mnist-labels-idx1")):
        path = samples / f"{sample}-ubyte.gz"
        mirror.answers[f"/{sample}"] = send(path.read_bytes())
        pinned = replace(
            SOURCES[name],
            content_sha256=content_sha256(read_idx(path)),
            urls=(mirror.url(f"/{sample}"),),
        )
        monkeypatch.setitem(SOURCES, name, pinned)
    first = load("mnist", "test", tmp_path)
    assert len(first) == 100
    assert mirror.asked == ["/mnist-images-idx3", "/mnist-labels-idx1"]
    assert load("mnist", "test", tmp_path).sha256 == first.sha256
    assert len(mirror.asked) == 2


def broken_short(content: bytes) -> Answer:
    return send(content[:-10], declared=len(content))


@pytest.mark.parametrize(
    "broken",
    [
        lambda content: fail,
        lambda content: send(content[:-10]),
        broken_short,
        lambda content: send(b"<html>moved</html>"),
        lambda content: send(content + bytes(2 * len(content))),
    ],
    ids=["error", "other bytes", "cut off", "web page", "too much"],
)
def test_second_mirror_helps_when_the_first_is_broken(
    broken: Callable[[bytes], Answer],
    images: bytes,
    source: SourceFile,
    mirror: Mirror,
    tmp_path: Path,
) -> None:
    mirror.answers = {"/first": broken(images), "/second": send(images)}
    destination = tmp_path / IMAGES
    download(source, destination)
    assert destination.read_bytes() == images
    assert mirror.asked == ["/first", "/second"]
    assert files(tmp_path) == [destination.name]


def test_unreachable_mirror_is_passed_over(
    images: bytes, source: SourceFile, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.answers = {"/second": send(images)}
    urls = ("http://127.0.0.1:1/first", "http://[", source.urls[1])
    download(replace(source, urls=urls), tmp_path / "file.gz")
    assert files(tmp_path) == ["file.gz"]


def test_wrong_checksum_everywhere_is_an_error_and_leaves_nothing(
    images: bytes, source: SourceFile, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.answers = {"/first": send(images[:-1]), "/second": fail}
    with pytest.raises(DataError, match="place the file at") as caught:
        download(source, tmp_path / "set" / "file.gz")
    message = str(caught.value)
    assert f"{source.urls[0]}: sent other bytes than the published file" in message
    assert f"{source.urls[1]}: Server error '503" in message
    assert "\n" not in message
    assert files(tmp_path) == []


def test_body_is_kept_as_it_is_though_called_compressed(
    images: bytes, source: SourceFile, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.answers = {"/first": send(images, encoding="gzip")}
    download(source, tmp_path / "file.gz")
    assert (tmp_path / "file.gz").read_bytes() == images


def test_nothing_is_in_place_until_all_is_there(
    images: bytes, source: SourceFile, mirror: Mirror, tmp_path: Path
) -> None:
    destination = tmp_path / "file.gz"
    seen: list[bool] = []

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(images)))
        handler.end_headers()
        for start in range(0, len(images), 4096):
            handler.wfile.write(images[start : start + 4096])
            handler.wfile.flush()
            seen.append(destination.exists())

    mirror.answers = {"/first": slowly}
    download(source, destination)
    assert seen[:-1]
    assert not any(seen[:-1])
    assert destination.read_bytes() == images
    assert destination.stat().st_mode & 0o777 == 0o644


def test_time_limit_holds_however_steadily_a_mirror_sends(
    served: SourceFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "MAX_SECONDS", -1.0)
    with pytest.raises(DataError, match="took more than"):
        download(served, tmp_path / "file.gz")
    assert files(tmp_path) == []


def test_stalled_mirror_is_given_up(
    images: bytes,
    source: SourceFile,
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()

    def stall(handler: BaseHTTPRequestHandler) -> None:
        released.wait(10)

    mirror.answers = {"/first": stall, "/second": send(images)}
    monkeypatch.setattr(download_module, "TIMEOUT", httpx.Timeout(0.2))
    try:
        download(source, tmp_path / "file.gz")
    finally:
        released.set()
    assert mirror.asked == ["/first", "/second"]


def test_directory_that_cannot_be_made_is_named(
    images: bytes, source: SourceFile, mirror: Mirror, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="choose another data directory"):
        download(source, tmp_path / "file" / "mnist" / "images.gz")
    assert mirror.asked == []


def test_download_can_be_forbidden(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing: allow the download"):
        Store(tmp_path, may_download=False).get(IMAGES)
    assert mirror.asked == []


def test_progress_is_shown_on_a_terminal_only(
    served: SourceFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    download(served, tmp_path / "quiet.gz")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    download(served, tmp_path / "shown.gz")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "mnist" in captured.err
