from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from models.networks import build
from training.minibatches import MEMORY, UNIFORM, Batch, learn, preferential, shuffled
from training.posterior import Posterior, squared_residuals


@given(size=st.integers(1, 60), batch_size=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_shuffled_batches_draw_without_replacement_and_drop_a_short_last_one(
    size: int, batch_size: int, seed: int
) -> None:
    batch_size = min(batch_size, size)
    batches = list(shuffled(size, batch_size, torch.Generator().manual_seed(seed)))
    drawn = torch.cat([batch.examples for batch in batches]).tolist()
    assert [len(batch.examples) for batch in batches] == [batch_size] * (size // batch_size)
    assert all(batch.weights.tolist() == [1.0] * batch_size for batch in batches)
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(range(size))


@pytest.mark.parametrize("size", [0, 1, 4])
def test_no_batch_of_fewer_examples_than_one_batch(size: int) -> None:
    assert list(shuffled(size, 5, torch.Generator())) == []
    assert list(preferential(torch.ones(size), 5, torch.Generator())) == []


def test_shuffled_batches_are_random_and_repeatable() -> None:
    first, again, other = (
        torch.cat([b.examples for b in shuffled(1000, 100, torch.Generator().manual_seed(seed))])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert (first == other).sum() < 10


def test_every_example_is_as_likely_as_any_other_to_be_in_the_first_shuffled_batch() -> None:
    generator, counts = torch.Generator().manual_seed(3), torch.zeros(20)
    print("seed 3")
    for _ in range(2000):
        counts[next(shuffled(20, 5, generator)).examples] += 1
    assert (counts - 500).abs().max() < 4.5 * math.sqrt(2000 * 0.25 * 0.75)


def test_preferential_batches_draw_in_proportion_and_weigh_by_the_inverse() -> None:
    """Expected counts are B p_i, and their variance at most that of independent draws."""
    print("seed 4")
    residuals = torch.tensor([0.0, 0.01, 0.25, 1.0, 0.0, 4.0, 0.04, 0.0001])
    norms = residuals.double().sqrt()
    p = UNIFORM / 8 + (1 - UNIFORM) * norms / norms.sum()
    generator, counts, batches = torch.Generator().manual_seed(4), torch.zeros(8), 4000
    for _ in range(batches):
        batch = next(preferential(residuals, 4, generator))
        counts += torch.bincount(batch.examples, minlength=8)
        assert batch.weights.double() == pytest.approx(1 / (8 * p[batch.examples]), rel=1e-6)
        assert batch.weights.max() <= 1 / UNIFORM
    error = (counts / batches - 4 * p) / (4 * p / batches).sqrt()
    assert error.abs().max() < 4.5


def test_of_images_that_are_all_certain_every_one_is_as_likely() -> None:
    batch = next(preferential(torch.zeros(40), 40, torch.Generator().manual_seed(5)))
    assert batch.examples.tolist() == list(range(40))
    assert batch.weights.tolist() == [1.0] * 40


def test_preferential_batches_follow_what_is_learnt_while_they_are_drawn() -> None:
    residuals = torch.zeros(100)
    batches = preferential(residuals, 10, torch.Generator().manual_seed(6))
    next(batches)
    residuals[70] = 1.0
    drawn = next(batches).examples
    assert (drawn == 70).sum() >= 7


def test_a_running_mean_of_squared_residuals() -> None:
    residuals = torch.tensor([1.0, 2.0, 3.0])
    learn(residuals, Batch(torch.tensor([2, 0]), torch.ones(2)), torch.tensor([5.0, 0.0]))
    assert residuals.tolist() == [1 - MEMORY, 2.0, 3 + 2 * MEMORY]


def test_squared_residuals_are_the_nll_s_gradient_in_the_logits() -> None:
    generator = torch.Generator().manual_seed(7)
    logits = (torch.randn(50, 10, generator=generator) * 20).requires_grad_()
    labels = torch.randint(10, (50,), generator=generator)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)
    assert squared_residuals(logits, labels) == pytest.approx(gradient.square().sum(1), abs=1e-6)
    assert (squared_residuals(torch.full((3, 4), -1e4), torch.arange(3)) >= 0).all()


def test_preferential_gradients_are_unbiased_and_less_noisy_where_few_examples_matter() -> None:
    """400 batches of a fitted model: their mean is ∇Ū within 4.5 standard errors, direction-wise.

    A quarter of the examples is wrongly labelled, the others are certain.
    """
    print("seed 8")
    generator = torch.Generator().manual_seed(8)
    network = build("mlp", (1, 1, 6), 3, hidden=())
    posterior = Posterior.build(network, 300, dict.fromkeys(network.shapes, 1.0))
    position = posterior.prior.draw(generator) * 6
    images = torch.randn(300, 1, 1, 6, generator=generator)
    labels = posterior.logits(position, images).argmax(1)
    labels[:15] = (labels[:15] + 1) % 3
    exact, _ = posterior.gradient(position, images, labels)
    residuals = squared_residuals(posterior.logits(position, images), labels)
    variances = {}
    for name, batches in (
        ("shuffled", (next(shuffled(300, 10, generator)) for _ in range(400))),
        ("preferential", (next(preferential(residuals, 10, generator)) for _ in range(400))),
    ):
        drawn = torch.stack(
            [
                posterior.weighted_gradient(
                    position, images[batch.examples], labels[batch.examples], batch.weights
                )[0]
                for batch in batches
            ]
        )
        error = (drawn.mean(0) - exact) / (drawn.std(0) / math.sqrt(len(drawn)))
        assert error.abs().max() < 4.5
        variances[name] = drawn.var(0).sum().item()
    assert variances["preferential"] < variances["shuffled"] / 4
