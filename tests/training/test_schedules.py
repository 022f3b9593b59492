from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.schedules import constant, cooling, cyclical, polynomial, sampling_stage

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


def test_cyclical_by_hand() -> None:
    schedule = cyclical(initial=0.8, cycle_steps=4)
    quarter = math.sqrt(0.5)
    cycle = [0.8, 0.4 * (1 + quarter), 0.4, 0.4 * (1 - quarter)]
    assert [schedule(step) for step in range(8)] == pytest.approx(cycle + cycle)
    assert schedule(4 * 10**6 + 1) == schedule(1)


def test_sampling_stage_is_the_end_of_every_cycle() -> None:
    sampling = sampling_stage(cycle_steps=4, exploration=0.5)
    assert [sampling(step) for step in range(8)] == [False, False, True, True] * 2
    always = sampling_stage(cycle_steps=4, exploration=0.0)
    assert all(always(step) for step in range(8))


@given(
    initial=positive,
    cycle_steps=st.integers(1, 200),
    exploration=st.floats(0, 1, exclude_max=True),
)
def test_every_step_of_a_cycle_is_positive_and_a_cycle_samples_at_its_end(
    initial: float, cycle_steps: int, exploration: float
) -> None:
    schedule, sampling = cyclical(initial, cycle_steps), sampling_stage(cycle_steps, exploration)
    values = [schedule(step) for step in range(cycle_steps)]
    assert min(values) > 0
    assert values == sorted(values, reverse=True)
    stages = [sampling(step) for step in range(cycle_steps)]
    assert stages == sorted(stages)
    assert sum(stages) == cycle_steps - math.ceil(exploration * cycle_steps)


@pytest.mark.parametrize("exploration", [-0.1, 1.0, math.nan])
def test_a_cycle_must_sample(exploration: float) -> None:
    with pytest.raises(ValueError, match="exploration"):
        sampling_stage(10, exploration)


def test_a_cycle_has_steps() -> None:
    with pytest.raises(ValueError, match="cycle_steps"):
        cyclical(0.1, 0)
    with pytest.raises(ValueError, match="cycle_steps"):
        sampling_stage(0, 0.5)
