from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from training import pool
from training.chains import Progress, advance
from training.checkpoint import path_of
from training.problem import formulate
from training.recipe import Recipe


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Everything in this process: starting others takes seconds. Gives what the tasks said."""
    said: list[str] = []

    def run_chains(
        recipe: Recipe,
        data_dir: Path | None,
        run: Path,
        workers: int,
        report: Callable[[Progress], None],
    ) -> None:
        problem = formulate(recipe, data_dir)
        for chain in range(recipe.sampler.chains):
            advance(problem, chain, path_of(run, chain), report, lambda: False)

    def run_tasks(tasks: Sequence[pool.Task], workers: int, say: Callable[[str], None]) -> None:
        for task in tasks:
            task(said.append, lambda: False)

    monkeypatch.setattr(pool, "run_all", run_chains)
    monkeypatch.setattr(pool, "run_tasks", run_tasks)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield said
    torch.set_num_threads(threads)
