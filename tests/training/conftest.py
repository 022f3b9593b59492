"""A recipe small enough to be sampled in a tenth of a second, on the real 8 × 8 digits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from training import recipe as recipes
from training.problem import Problem, formulate
from training.recipe import Recipe

TINY = {
    "members": 4,
    "group": 2,
    "sampler": {
        "chains": 2,
        "prior_starts": 0,
        "half_step_epochs": 0,
        "warm_start_epochs": 2,
        "burn_in_epochs": 2,
        "sampling_epochs": 4,
        "samples": 3,
        "trace": 6,
        "schedule": {"kind": "cooling", "initial": 0.4, "final": 0.1, "epochs": 2},
    },
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the workers of `training.pool` have it, and kind to who shares the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    return recipes.change(recipes.load("digits"), TINY)


@pytest.fixture(scope="session")
def problem(tiny: Recipe) -> Problem:
    return formulate(tiny, None)
