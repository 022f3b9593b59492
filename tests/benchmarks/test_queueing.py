from __future__ import annotations

from dataclasses import replace
from math import ceil, exp, factorial, inf

import numpy as np
import pytest

from benchmarks.queueing import MAX_BATCH, NEVER, Service, capacity, open_loop, service_of, variants
from benchmarks.steps import SIZES, StepTimes

ONE_BY_ONE = Service((np.ones(1),), (1.0,), http=0.0, most=1)
TIMES = [
    StepTimes(0, 2, 1.0, tuple(0.8e-3 + 0.07e-3 * size for size in SIZES)),
    StepTimes(2, 8, 0.12, tuple(0.3e-3 + 0.11e-3 * size for size in SIZES)),
]
SERVICE = service_of(TIMES, 50e-6)


def waits_longer(than: float, load: float) -> float:
    """P(W > t) of M/D/1 in service times, by Crommelin's sum (1932)."""
    terms = (
        (load * (k - than)) ** k / factorial(k) * exp(-load * (k - than)) for k in range(ceil(than))
    )
    return 1 - (1 - load) * sum(terms)


@pytest.mark.parametrize(("load", "than"), [(0.5, 2.5), (0.8, 4.5)])
def test_one_by_one_is_the_queue_of_the_books(load: float, than: float) -> None:
    """The share that waits longer, within 4.5 of its standard errors over 40 runs."""
    shares = [
        float((open_loop(ONE_BY_ONE, load, 4_000.0, seed) - 1 > than).mean()) for seed in range(40)
    ]
    error = np.std(shares, ddof=1) / np.sqrt(len(shares))
    print(
        f"seeds 0 to 39: {np.mean(shares):.5f} ± {error:.5f}, exact {waits_longer(than, load):.5f}"
    )
    assert abs(np.mean(shares) - waits_longer(than, load)) < 4.5 * error
    assert error < 0.05 * waits_longer(than, load)


def test_capacity_is_that_of_full_steps() -> None:
    """Without a second step: 64 images in what a step of 64 takes, and their HTTP."""
    single = replace(SERVICE, shares=(1.0, 0.0))
    seconds = single.steps[0][MAX_BATCH - 1] + MAX_BATCH * single.http
    assert capacity(single) == pytest.approx(MAX_BATCH / seconds, rel=0.01)


def test_as_many_need_a_second_step_as_is_said() -> None:
    needs = SERVICE.needs(seed=1)
    found = np.mean([next(needs) == 2 for _ in range(100_000)])
    assert abs(found - 0.12) < 4.5 * np.sqrt(0.12 * 0.88 / 100_000)


def test_every_request_is_answered_and_no_sooner_than_its_steps_take() -> None:
    latencies = open_loop(SERVICE, 1_000.0, seconds=5.0)
    assert len(latencies) == pytest.approx(5_000, abs=4.5 * np.sqrt(5_000))
    assert latencies.min() >= SERVICE.steps[0][0] + SERVICE.http - 1e-12


def test_variants_change_one_thing_each() -> None:
    as_it_is, first, later, none, single = variants(SERVICE).values()
    assert (as_it_is, first.full) == (SERVICE, NEVER)
    assert np.array_equal(later.steps[0], SERVICE.steps[0])
    assert later.steps[1][[0, 1]] == pytest.approx([0.11e-3, 0.22e-3])
    assert none.steps[0][[0, 1]] == pytest.approx([0.07e-3, 0.14e-3])
    assert single.shares == (1.0, 0.0)
    loads = [open_loop(each, 4_000.0, seconds=5.0) for each in (as_it_is, later, none)]
    p99 = [float(np.percentile(each, 99)) for each in loads]
    assert inf > p99[0] > p99[1] > p99[2] > 0
