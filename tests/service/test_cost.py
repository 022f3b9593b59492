"""What steps cost, against exact costs and an independent least squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import nnls

from service.cost import CASES, STEPS, Cost

MAX_BATCH = 32


def learnt(sizes: NDArray[Any], seconds: NDArray[Any], cost: Cost | None = None) -> Cost:
    cost = cost or Cost()
    for size, each in zip(sizes.tolist(), seconds.tolist(), strict=True):
        cost.count_step(0, size, each)
    return cost


def test_nothing_costs_anything_before_the_first_step() -> None:
    cost = Cost()
    cost.count_settled(7)
    assert cost.seconds([(0, 10_000)], MAX_BATCH) == 0


@pytest.mark.parametrize(("a", "b"), [(0.002, 0.03), (0.0, 0.03), (0.002, 0.0)])
def test_an_exact_cost_is_found(a: float, b: float) -> None:
    sizes = np.random.default_rng(1).integers(1, 33, 3 * STEPS)
    cost = learnt(sizes, a * sizes + b)
    assert cost.per_image == pytest.approx(a, abs=1e-12)
    assert cost.per_step == pytest.approx(b, abs=1e-12)


def test_two_sizes_are_enough() -> None:
    cost = learnt(np.array([1, 32]), np.array([1.5, 17.0]))
    assert (cost.per_image, cost.per_step) == pytest.approx((0.5, 1.0))


def test_one_size_says_nothing_of_the_slope() -> None:
    cost = learnt(np.full(5, 8), np.array([1.0, 2.0, 3.0, 2.0, 2.0]))
    assert (cost.per_image, cost.per_step) == pytest.approx((0.0, 2.0))


@pytest.mark.parametrize(("a", "b"), [(1.0, 5.0), (-0.3, 20.0), (2.0, -1.5)])
def test_it_is_the_weighted_least_squares_with_no_negative_cost(a: float, b: float) -> None:
    """The negative slopes and intercepts lead to each edge of a, b >= 0."""
    rng = np.random.default_rng(2)
    count = 4 * STEPS
    sizes = rng.integers(1, 33, count)
    seconds = np.maximum(a * sizes + b + rng.normal(0, 1, count), 0)
    weights = np.ones(count)
    for step in range(STEPS, count):
        weights[:step] *= 1 - 1 / STEPS
    root = np.sqrt(weights)
    expected, _ = nnls(root[:, None] * np.stack([sizes, np.ones(count)], axis=1), root * seconds)
    cost = learnt(sizes, seconds)
    assert (cost.per_image, cost.per_step) == pytest.approx(tuple(expected), rel=1e-9, abs=1e-9)
    assert (expected > 0).tolist() == [a > 0, b > 0]


def test_a_change_of_cost_is_followed() -> None:
    sizes = np.random.default_rng(3).integers(1, 33, 10 * STEPS)
    cost = learnt(sizes, 5.0 * sizes + 7.0)
    learnt(sizes, 1.0 * sizes + 2.0, cost)
    assert (cost.per_image, cost.per_step) == pytest.approx((1.0, 2.0), rel=0.01)


def test_a_slope_that_was_found_is_kept_while_sizes_do_not_differ() -> None:
    cost = learnt(np.array([1, 32]), np.array([1.5, 17.0]))
    learnt(np.full(200_000, 8), np.full(200_000, 5.0), cost)
    assert cost.per_image * 8 + cost.per_step == pytest.approx(5.0)
    assert cost.per_image >= 0
    assert cost.per_step >= 0


def test_steps_of_a_case() -> None:
    cost = Cost()
    for steps in (1, 2, 6):
        cost.count_settled(steps)
    assert cost.case_steps == pytest.approx(3.0)
    for _ in range(CASES):
        cost.count_settled(1)
    for _ in range(10 * CASES):
        cost.count_settled(5)
    assert cost.case_steps == pytest.approx(5.0, rel=1e-3)


def known(a: float, b: float, stages: list[int], case_steps: list[int]) -> Cost:
    """Has seen steps at `stages` of 1, 2, 3 ... images."""
    cost = Cost()
    for index, stage in enumerate(stages):
        cost.count_step(stage, index + 1, a * (index + 1) + b)
    for steps in case_steps:
        cost.count_settled(steps)
    return cost


def test_time_of_work_by_hand() -> None:
    """To one step of new images came two others, so two batches of new images need six steps."""
    cost = known(0.5, 10.0, [0, 1, 2, 0, 1, 2], [3, 3])
    assert cost.seconds([(0, 5)], 4) == pytest.approx(0.5 * 15 + 10.0 * 6)


@pytest.mark.parametrize(("stage", "rest"), [(0, 3.5), (1, 2.5), (3, 1.0), (9, 1.0)])
def test_what_is_under_way_needs_only_its_rest(stage: int, rest: float) -> None:
    cost = known(1.0, 0.0, [0, 0], [3, 4])
    assert cost.seconds([(stage, 10)], 4) == pytest.approx(10 * rest)


def test_there_are_no_fewer_steps_than_full_ones() -> None:
    cost = known(0.0, 1.0, [0, 0], [4])
    assert cost.seconds([(0, 8)], 4) == pytest.approx(8)


def test_no_work_takes_no_time() -> None:
    assert known(1.0, 1.0, [0, 0], [4]).seconds([(0, 0)], 4) == 0
