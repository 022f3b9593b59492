"""Chains in this process, one after the other: starting others takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from training import pool
from training.chains import Progress, advance
from training.checkpoint import path_of
from training.problem import formulate
from training.recipe import Recipe


def run_here(
    recipe: Recipe,
    data_dir: Path | None,
    run: Path,
    workers: int,
    report: Callable[[Progress], None],
) -> None:
    problem = formulate(recipe, data_dir)
    for chain in range(recipe.sampler.chains):
        advance(problem, chain, path_of(run, chain), report, lambda: False)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "run_all", run_here)
