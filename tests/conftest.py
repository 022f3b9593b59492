from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Tasks in this process, one after the other: starting others takes seconds.

    Gives what they said, but for the progress of chains.
    """
    import torch

    from training import pool

    said: list[str] = []

    def run_tasks(tasks: Sequence[pool.Task], workers: int, report: Callable[[Any], None]) -> None:
        def tell(message: Any) -> None:
            if isinstance(message, str):
                said.append(message)
            report(message)

        for task in tasks:
            task(tell, lambda: False)

    monkeypatch.setattr(pool, "run_tasks", run_tasks)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield said
    torch.set_num_threads(threads)
