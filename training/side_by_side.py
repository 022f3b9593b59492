"""Independent tasks side by side, in processes that Ctrl-C stops at a safe point."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from queue import Empty

import torch

from training.checkpoint import ChainError

Task = Callable[[Callable[[str], None], Callable[[], bool]], None]
"""Does its work; is given a function that takes a line of progress, and one to ask whether to stop.

It is sent to its process with pickle.
"""


def run(tasks: Sequence[Task], workers: int, say: Callable[[str], None]) -> None:
    """Run every task to its end, `workers` at a time, one thread each.

    On KeyboardInterrupt every task is told to stop, and the interrupt goes on.

    Raises:
        ChainError: a process died.
    """
    context = get_context("spawn")
    messages: Queue[str] = context.Queue()
    stop = context.Event()
    with ProcessPoolExecutor(
        max_workers=min(workers, len(tasks)),
        mp_context=context,
        initializer=_initialise,
        initargs=(messages, stop),
    ) as executor:
        running = {executor.submit(_work, task) for task in tasks}
        try:
            while running:
                done, running = wait(running, timeout=0.2)
                while True:
                    try:
                        say(messages.get_nowait())
                    except Empty:
                        break
                for future in done:
                    future.result()
        except BaseException as error:
            stop.set()
            for future in running:
                future.cancel()
            if isinstance(error, BrokenProcessPool):
                raise ChainError("a process died: run the same command again") from error
            raise


_messages: Queue[str] | None = None
_stop: Event | None = None


def _initialise(messages: Queue[str], stop: Event) -> None:
    global _messages, _stop
    _messages, _stop = messages, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(task: Task) -> None:
    assert _messages is not None
    assert _stop is not None
    if not _stop.is_set():
        task(_messages.put, _stop.is_set)
