from __future__ import annotations

import math

import numpy as np
import pytest

from training.agreement import agreement, compare, total_variation

P = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
Q = np.array([[0.3, 0.5, 0.2], [0.1, 0.2, 0.7]])


def test_two_predictives_by_hand() -> None:
    assert agreement(P, Q) == 0.5
    assert total_variation(P, Q) == pytest.approx((0.2 + 0.1) / 2)
    assert agreement(P, P) == 1
    assert total_variation(P, P) == 0
    certain = np.eye(3)[[0, 1]]
    assert total_variation(certain, np.eye(3)[[1, 2]]) == 1


def test_halves_are_all_the_ways_to_choose_them() -> None:
    """Four chains of one image and two classes, with p₁ = .1, .2, .4, .8 against .5 throughout."""
    first = np.array([0.1, 0.2, 0.4, 0.8])
    reference = np.stack([first, 1 - first], axis=1)[:, None]
    flat = np.full((4, 1, 2), 0.5)
    result = compare(reference, flat, np.array([[0.4, 0.6]]))
    splits = [abs(0.3 - 1.2) / 2, abs(0.5 - 1.0) / 2, abs(0.9 - 0.6) / 2]
    assert result.floor_total_variation == pytest.approx(np.mean(splits))
    halves = np.array([0.15, 0.25, 0.45, 0.3, 0.5, 0.6])
    assert result.total_variation == pytest.approx(np.abs(halves - 0.5).mean())
    assert result.own_total_variation == 0
    assert result.floor_agreement == pytest.approx(1 / 3)
    assert result.agreement == 0  # a tie goes to the first class
    expected = np.mean(splits) / math.sqrt(2)
    assert result.expected_total_variation == pytest.approx(expected)


def test_a_sampler_of_the_same_law_meets_the_floor_and_another_does_not() -> None:
    """On 20,000 images whose chains differ by noise, to 4 standard errors over the images."""
    seed, size = 7, 20_000
    print(f"seed {seed}")
    generator = np.random.default_rng(seed)
    truth = generator.dirichlet(np.ones(3), size)

    def chains(centre: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        noise = generator.normal(size=(4, size, 3)) * 0.01
        return centre + noise - noise.mean(axis=2, keepdims=True)

    same, other = (
        compare(chains(truth), chains(truth), truth),
        compare(chains(truth), chains(truth[:, ::-1]), truth),
    )
    # The deviation of one image's distance is below its mean: ½ Σ|d| of Gaussian d.
    error = same.floor_total_variation / math.sqrt(size)
    assert same.total_variation == pytest.approx(same.floor_total_variation, abs=4 * error)
    assert same.total_variation == pytest.approx(same.expected_total_variation, abs=4 * error)
    assert other.total_variation > 10 * same.total_variation
    assert other.agreement < same.agreement


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="equally many chains"):
        compare(np.zeros((4, 5, 3)), np.zeros((6, 5, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="an even number"):
        compare(np.zeros((3, 5, 3)), np.zeros((3, 5, 3)), np.zeros((5, 3)))
