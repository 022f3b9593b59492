"""Independent tasks side by side, in processes that Ctrl-C stops at a safe point."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from training.chains import Progress, advance
from training.checkpoint import ChainError, path_of
from training.problem import formulate
from training.recipe import Recipe

Task = Callable[[Callable[[Any], None], Callable[[], bool]], object]
"""Does its work; is given a function that takes a report, and one that says whether to stop.

It is sent to its process with pickle, and so are its reports.
"""


def run_all(
    recipe: Recipe,
    data_dir: Path | None,
    run: Path,
    workers: int,
    report: Callable[[Progress], None],
) -> None:
    """Run every chain of the recipe to its end, `workers` at a time.

    On KeyboardInterrupt every chain finishes its epoch, is saved, and the interrupt goes on.

    Raises:
        ChainError: a chain failed or its process died; the others keep their checkpoints.
    """
    chains = range(recipe.sampler.chains)
    run_tasks([partial(_chain, recipe, data_dir, run, chain) for chain in chains], workers, report)


def run_tasks(tasks: Sequence[Task], workers: int, report: Callable[[Any], None]) -> None:
    """Run every task to its end, `workers` at a time, one thread each.

    On KeyboardInterrupt every task is told to stop, and the interrupt goes on.

    Raises:
        ChainError: a process died. What a task raises is raised, and the others are told to stop.
    """
    context = get_context("spawn")
    messages: Queue[Any] = context.Queue()
    stop = context.Event()
    with ProcessPoolExecutor(
        max_workers=min(workers, len(tasks)),
        mp_context=context,
        initializer=_initialise,
        initargs=(messages, stop),
    ) as pool:
        with _uninterrupted():
            futures = [pool.submit(_work, task) for task in tasks]
        try:
            with _interrupts() as interrupted:
                _follow(futures, messages, report, interrupted)
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C; processes that are started meanwhile ignore it all their life."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; an exception out of nowhere can get lost in a destructor."""
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(
    futures: list[Future[None]],
    messages: Queue[Any],
    report: Callable[[Any], None],
    interrupted: Callable[[], bool],
) -> None:
    running = set(futures)
    while running:
        done, running = wait(running, timeout=0.2)
        if interrupted():
            raise KeyboardInterrupt
        while True:
            try:
                report(messages.get_nowait())
            except Empty:
                break
        for future in done:
            try:
                future.result()
            except BrokenProcessPool as error:
                raise ChainError("a process died: run the same command again to resume") from error


_messages: Queue[Any] | None = None
_stop: Event | None = None


def _initialise(messages: Queue[Any], stop: Event) -> None:
    global _messages, _stop
    _messages, _stop = messages, stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def _end_with_parent() -> None:
    """Nobody reads or stops a task whose parent was killed; what it had saved is complete."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(task: Task) -> None:
    assert _messages is not None
    assert _stop is not None
    if not _stop.is_set():
        task(_messages.put, _stop.is_set)


def _chain(
    recipe: Recipe,
    data_dir: Path | None,
    run: Path,
    chain: int,
    report: Callable[[Progress], None],
    stopped: Callable[[], bool],
) -> None:
    advance(formulate(recipe, data_dir), chain, path_of(run, chain), report, stopped)
