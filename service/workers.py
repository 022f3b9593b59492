"""Several processes that serve one port: each has its own model, scheduler and threads.

The parent binds the port, starts the workers, starts another in the place of one that dies, and
stops them all, or has them reload: a signal to the parent is for every worker, signals to workers
mean nothing. What each end says to the other goes over a pipe, whose end is also how one learns of
the other's death.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe, get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from service.errors import StartupError
from service.port import listener, reserve
from service.settings import Settings

RELOAD = getattr(signal, "SIGHUP", None)
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
    if hasattr(signal, name)
)
PAUSE_SECONDS = 5.0

log = logging.getLogger("service.workers")


@dataclass(frozen=True)
class Ready:
    """A worker serves; `text` says what, and where."""

    text: str


@dataclass(frozen=True)
class Failed:
    """A worker has ended, or will not begin."""

    reason: str


@dataclass
class Worker:
    """A process, and the parent's end of its pipe; its place is below `settings.workers`."""

    place: int
    process: SpawnProcess
    pipe: Connection
    ready: bool = False

    def news(self) -> Ready | Failed:
        """What it says, when there is something; its end too."""
        try:
            news: Ready | Failed = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(1.0)
            status = self.process.exitcode
            return Failed(f"worker {self.place} ended with status {status}")
        return news

    def end(self) -> None:
        """Kill it if it still runs."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


Start = Callable[[int, float], Worker]
"""Starts the worker of a place, which begins after a pause of so many seconds."""


def serve_with_workers(settings: Settings) -> None:
    """Serve with `settings.workers` processes until a signal comes.

    A worker that dies is replaced at once, and one that dies before it was ready after a pause. If
    the first of them do not all get ready, or later none is left that serves, the service gives up.

    Raises:
        StartupError: the port cannot be bound, or a worker does not get ready.
    """
    try:
        temporary = TemporaryDirectory(prefix="langevin-gate-")
    except OSError as error:
        raise StartupError(f"no place for the metrics of several workers: {error}") from error
    with temporary as name, reserve(settings.host, settings.port) as port, _signals() as signals:
        directory = Path(name)
        start = partial(_start, settings, port, directory)
        crew: list[Worker] = []
        try:
            for place in range(settings.workers):
                crew.append(start(place, 0.0))
            first = keep_complete(crew, start, directory, signals)
            port.close()
            second = _stop(crew, first, signals)
        finally:
            for worker in crew:
                worker.end()
    if second is not None:
        signal.signal(second, signal.SIG_DFL)
        signal.raise_signal(second)
    if any(worker.ready and worker.process.exitcode for worker in crew):
        sys.exit(1)


def keep_complete(crew: list[Worker], start: Start, directory: Path, signals: Connection) -> int:
    """Replace workers that die until a signal comes; returns its number.

    Raises:
        StartupError: a worker does not get ready, and `serve_with_workers` says when that is fatal.
    """
    announced = False
    while True:
        for pipe in wait([signals, *(worker.pipe for worker in crew)]):
            if pipe is signals:
                if (number := int(signals.recv())) != RELOAD:
                    return number
                _tell(crew, number)
                continue
            worker = next(each for each in crew if each.pipe is pipe)
            news = worker.news()
            if isinstance(news, Ready):
                worker.ready = True
                if announced:
                    log.info("worker %d serves again", worker.place)
                elif all(each.ready for each in crew):
                    announced = True
                    log.info("%s", news.text)
                continue
            if not worker.ready and not (announced and any(each.ready for each in crew)):
                raise StartupError(news.reason)
            worker.end()
            pause = 0.0 if worker.ready else PAUSE_SECONDS
            log.error("%s: another takes its place after %g s", news.reason, pause)
            _forget_gauges(worker.place, directory)
            crew[worker.place] = start(worker.place, pause)


def _start(
    settings: Settings, port: socket.socket, directory: Path, place: int, pause: float
) -> Worker:
    context = get_context("spawn")
    pipe, its_end = context.Pipe()
    with its_end, listener(port) as its_listener:
        arguments = (place, pause, settings, its_listener, directory, its_end)
        process = context.Process(target=_work, args=arguments)
        with _held_back():
            process.start()
    return Worker(place, process, pipe)


def _work(
    place: int,
    pause: float,
    settings: Settings,
    its_listener: socket.socket,
    directory: Path,
    parent: Connection,
) -> None:
    from service.worker import work  # the parent needs none of what it imports

    work(place, pause, settings, its_listener, directory, parent)


def _stop(crew: Sequence[Worker], first: int, signals: Connection) -> int | None:
    """Let the workers finish; a second signal, which is returned, ends the wait."""
    serving = _tell(crew, first)
    open_ends = {worker.process.sentinel for worker in serving}
    while open_ends:
        ended = wait([signals, *open_ends])
        if signals in ended and (number := int(signals.recv())) != RELOAD:
            return number
        open_ends -= set(ended)
    return None


def _tell(crew: Sequence[Worker], number: int) -> list[Worker]:
    """Tell the workers that serve of a signal; returns them. Others open what is there then."""
    serving = [worker for worker in crew if worker.ready]
    for worker in serving:
        with suppress(OSError):
            worker.pipe.send(number)
    return serving


def _forget_gauges(place: int, directory: Path) -> None:
    from service.shared_metrics import forget_gauges

    forget_gauges(place, directory)


@contextmanager
def _signals() -> Iterator[Connection]:
    """What gives the number of each signal that comes."""
    inbox, outbox = Pipe(duplex=False)
    before = {
        number: signal.signal(number, lambda number, _: outbox.send(number)) for number in SIGNALS
    }
    try:
        yield inbox
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        inbox.close()
        outbox.close()


@contextmanager
def _held_back() -> Iterator[None]:
    """Signals wait meanwhile; from a process that is started now they are held back for ever."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # started later, it would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
