"""Chains side by side, in processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import Empty

import torch

from training.chains import Progress, advance
from training.checkpoint import ChainError, path_of
from training.problem import formulate
from training.recipe import Recipe


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
    context = get_context("spawn")
    messages: Queue[Progress] = context.Queue()
    stop = context.Event()
    with ProcessPoolExecutor(
        max_workers=min(workers, recipe.sampler.chains),
        mp_context=context,
        initializer=_initialise,
        initargs=(messages, stop),
    ) as pool:
        with _uninterrupted():
            futures = [
                pool.submit(_work, recipe, data_dir, run, chain)
                for chain in range(recipe.sampler.chains)
            ]
        try:
            _follow(futures, messages, report)
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


def _follow(
    futures: list[Future[bool]], messages: Queue[Progress], report: Callable[[Progress], None]
) -> None:
    running = set(futures)
    while running:
        done, running = wait(running, timeout=0.2)
        while True:
            try:
                report(messages.get_nowait())
            except Empty:
                break
        for future in done:
            try:
                future.result()
            except BrokenProcessPool as error:
                raise ChainError(
                    "a chain's process died: run the same command again to resume"
                ) from error


_messages: Queue[Progress] | None = None
_stop: Event | None = None


def _initialise(messages: Queue[Progress], stop: Event) -> None:
    global _messages, _stop
    _messages, _stop = messages, stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def _end_with_parent() -> None:
    """Nobody reads or stops a chain whose parent was killed; its checkpoint is complete."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(recipe: Recipe, data_dir: Path | None, run: Path, chain: int) -> bool:
    assert _messages is not None
    assert _stop is not None
    problem = formulate(recipe, data_dir)
    return advance(problem, chain, path_of(run, chain), _messages.put, _stop.is_set)
