from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.manifest import Members
from models.uncertainty import entropy, softmax
from training.chains import ChainResult, Observed
from training.diagnostics import split_rhat
from training.problem import Problem
from training.recipe import change
from training.samples import MIXING_IMAGES, Samples

CHAINS, KEPT = 3, 8


def draw(problem: Problem, last: float = 0.3) -> list[NDArray[np.float32]]:
    """Independent weight vectors [S, D] of standard deviation .3, in the last chain `last`."""
    randomness, size = np.random.default_rng(0), problem.network.num_weights
    stds = [0.3] * (CHAINS - 1) + [last]
    return [randomness.normal(0, std, (KEPT, size)).astype(np.float32) for std in stds]


def result(samples: NDArray[np.float32]) -> ChainResult:
    nothing = Observed(*(np.empty((0, 1)) for _ in range(4)))
    steps = np.linspace(1, 0.5, len(samples))
    return ChainResult(samples[0], samples, steps, np.empty(1), nothing, nothing, nothing)


def test_the_last_samples_of_each_chain_count(problem: Problem) -> None:
    first, second, third = draw(problem)
    samples = Samples.of(problem, [result(first), result(second[:5]), result(third)])
    assert len(samples) == CHAINS * 5
    assert samples.weights is None
    members = Members(count=3, group=1, chains=(2, 0, 1), samples=(4, 0, 2))
    expected = [third[7], first[3], second[2]]
    assert np.array_equal(samples.positions(members), expected)


def test_samples_of_shrinking_steps_count_in_proportion(problem: Problem) -> None:
    schedule = {"kind": "polynomial", "a": 1.0, "b": 1.0, "gamma": 0.55}
    sampler = problem.recipe.sampler.model_dump() | {"schedule": schedule}
    decaying = replace(problem, recipe=change(problem.recipe, {"sampler": sampler}))
    samples = Samples.of(decaying, [result(each) for each in draw(problem)])
    assert samples.weights == pytest.approx(np.tile(np.linspace(1, 0.5, KEPT), (CHAINS, 1)))


def test_probabilities_are_those_of_each_sample(problem: Problem) -> None:
    chains = draw(problem)
    images, _ = problem.tensors(problem.validation)
    probabilities = Samples.of(problem, [result(each) for each in chains]).probabilities(images[:7])
    assert probabilities.shape == (CHAINS, KEPT, 7, problem.network.num_classes)
    one = problem.posterior.logits(torch.from_numpy(chains[1][3]), images[:7]).numpy()
    assert probabilities[1, 3] == pytest.approx(softmax(one), abs=1e-5)


def test_chains_that_disagree_on_the_entropy_are_seen(problem: Problem) -> None:
    images, _ = problem.tensors(problem.train)
    assert len(images) >= 2 * MIXING_IMAGES
    alike, apart = (
        Samples.of(problem, [result(each) for each in draw(problem, last)]) for last in (0.3, 0.9)
    )
    some = images[:: len(images) // MIXING_IMAGES]
    by_hand = entropy(alike.probabilities(some).astype(np.float64)).mean(axis=2)
    assert alike.entropy_rhat(images) == pytest.approx(split_rhat(by_hand))
    assert alike.entropy_rhat(images) < 1.2 < 2 < apart.entropy_rhat(images)
