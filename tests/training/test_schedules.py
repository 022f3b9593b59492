from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.schedules import constant, cooling, polynomial

positive = st.floats(1e-6, 1e3)


def test_constant() -> None:
    schedule = constant(0.25)
    assert [schedule(step) for step in (0, 1, 10**9)] == [0.25] * 3


def test_polynomial_by_hand() -> None:
    schedule = polynomial(a=6.0, b=4.0, gamma=0.5)
    assert schedule(0) == pytest.approx(3.0)
    assert schedule(5) == pytest.approx(2.0)
    assert schedule(32) == pytest.approx(1.0)


def test_polynomial_sums_diverge_and_converge() -> None:
    """For γ = 1: the sum grows by a ln 10 a decade, that of squares has a tail of a²/t."""
    schedule = polynomial(a=2.0, b=1.0, gamma=1.0)
    decade = sum(schedule(step) for step in range(10_000, 100_000))
    assert decade == pytest.approx(2 * math.log(10), rel=1e-3)
    assert sum(schedule(step) ** 2 for step in range(10_000, 100_000)) < 4 / 10_000


def test_cooling_by_hand() -> None:
    schedule = cooling(initial=0.5, final=0.1, steps=4)
    half = math.sqrt(0.5)
    expected = [0.5, 0.1 + 0.2 * (1 + half), 0.3, 0.1 + 0.2 * (1 - half), 0.1, 0.1, 0.1]
    assert [schedule(step) for step in range(7)] == pytest.approx(expected)


@given(initial=positive, final=positive, steps=st.integers(1, 200))
def test_cooling_stays_between_its_ends_and_is_monotone(
    initial: float, final: float, steps: int
) -> None:
    schedule = cooling(initial, final, steps)
    values = [schedule(step) for step in range(steps + 3)]
    assert values[0] == pytest.approx(initial)
    assert values[-3:] == [final] * 3
    slack = 1e-12 * max(initial, final)
    assert min(initial, final) - slack <= min(values)
    assert max(values) <= max(initial, final) + slack
    direction = 1 if final >= initial else -1
    assert all(direction * (after - before) >= -slack for before, after in pairwise(values))
