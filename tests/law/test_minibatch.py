"""Oracle 6: conjugate regression on minibatches, against the exact law of each sampler."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.law import linear
from tests.law.linear import Recursion
from tests.law.regression import Batches, LinearRegression
from training.gradients import Anchor, anchored
from training.samplers import BAOAB, SGHMC, SGLD, Sampler, Target
from training.schedules import constant

Sizes = tuple[int, int, int]  # chains, steps from one state that is kept to the next, states kept

many, few = LinearRegression(200), LinearRegression(40)


def check(
    problem: LinearRegression,
    sampler: Sampler,  # type: ignore[type-arg]
    recursion: Recursion,
    exact: Tensor,
    target: Callable[[], Target],
    sizes: Sizes,
    generator: torch.Generator,
) -> None:
    """Mean μ and each variance within 4 exact standard errors, which must be at most 0.5 %."""
    chains, every, count = sizes
    normal = torch.randn(chains, len(exact), generator=generator, dtype=torch.float64)
    start = normal @ torch.linalg.cholesky(exact).T
    state = sampler.init(problem.mean + start[:, :3])
    if hasattr(state, "momentum"):
        state.momentum.copy_(start[:, 3:])
    kept = []
    for index in range(1, every * count + 1):
        state, _ = sampler.step(state, target())
        if index % every == 0:
            kept.append(state.position - problem.mean)
    deviations = torch.stack(kept)
    variance = exact.diagonal()[:3]
    mean_error, variance_error = recursion.relative_error(exact, every, count)
    ratio = deviations.square().mean((0, 1)) / variance
    drift = deviations.mean((0, 1)) / variance.sqrt()
    posterior = torch.linalg.inv(problem.precision).diagonal()
    for axis in range(3):
        bound = 4 * variance_error[axis].item() / math.sqrt(chains)
        print(
            f"variance {axis}: {(variance / posterior)[axis]:.3f} of the posterior's; "
            f"measured {ratio[axis]:.4f} of the exact, ± {bound / 4:.4f}"
        )
        assert bound <= 0.02
        assert ratio[axis].item() == pytest.approx(1, abs=bound)
        assert abs(drift[axis].item()) < 4 * mean_error[axis].item() / math.sqrt(chains)


@pytest.mark.parametrize(
    ("problem", "stiffness", "batch", "replace", "sizes"),
    [
        (many, 0.2, 10, True, (4_000, 20, 40)),
        (few, 0.2, 10, False, (4_800, 15, 40)),
    ],
    ids=["with replacement", "without"],
)
def test_sgld(
    problem: LinearRegression,
    stiffness: float,
    batch: int,
    replace: bool,
    sizes: Sizes,
    generator: torch.Generator,
) -> None:
    step_size = stiffness / problem.stiffest
    recursion = linear.sgld(problem.hessian, problem.size, step_size)
    exact = recursion.covariance(lambda sigma: problem.gradient_noise(sigma, batch, replace))
    batches = Batches(problem.size, batch, sizes[0], replace, generator)
    sampler = SGLD(problem.size, constant(step_size), generator)
    check(
        problem, sampler, recursion, exact, lambda: problem.target(batches.draw()), sizes, generator
    )


@pytest.mark.parametrize(
    ("stiffness", "momentum", "sizes"), [(0.1, 0.6, (4_000, 20, 40)), (0.02, 0.9, (4_000, 20, 40))]
)
@pytest.mark.parametrize("method", ["sghmc", "baoab"])
def test_underdamped(
    method: str,
    stiffness: float,
    momentum: float,
    sizes: Sizes,
    generator: torch.Generator,
) -> None:
    step_size, batch = stiffness / many.stiffest, 20
    law = {"sghmc": linear.sghmc, "baoab": linear.baoab}[method]
    recursion = law(many.hessian, many.size, step_size, momentum)
    exact = recursion.covariance(lambda sigma: many.gradient_noise(sigma, batch, True))
    batches = Batches(many.size, batch, sizes[0], True, generator)
    sampler = {"sghmc": SGHMC, "baoab": BAOAB}[method](
        many.size, constant(step_size), generator, momentum
    )
    check(many, sampler, recursion, exact, lambda: many.target(batches.draw()), sizes, generator)


def test_control_variates(generator: torch.Generator) -> None:
    """Their noise is that of θ − a alone, so that the law is nearer to the posterior."""
    step_size, batch, sizes = 0.2 / many.stiffest, 10, (4_000, 20, 50)
    spread = torch.linalg.inv(many.precision).diagonal().sqrt()
    anchor = Anchor.at(many.mean + spread, many.full_target)

    def noise(sigma: Tensor) -> Tensor:
        return many.gradient_noise(sigma, batch, True, anchor.position)

    recursion = linear.sgld(many.hessian, many.size, step_size)
    exact = recursion.covariance(noise)
    plain = recursion.covariance(lambda sigma: many.gradient_noise(sigma, batch, True))
    posterior = torch.linalg.inv(many.precision)
    assert ((plain - posterior).diagonal() > 5 * (exact - posterior).diagonal()).all()
    batches = Batches(many.size, batch, sizes[0], True, generator)
    sampler = SGLD(many.size, constant(step_size), generator)

    def target() -> Target:
        return anchored(many.target(batches.draw()), anchor)

    check(many, sampler, recursion, exact, target, sizes, generator)


def test_control_variates_are_unbiased(generator: torch.Generator) -> None:
    """The mean over all single examples is the full target, to rounding, at any θ and anchor."""
    theta, there = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    anchor = Anchor.at(there, many.full_target)
    energy, gradient = many.full_target(theta)
    singles = anchored(many.target(torch.arange(many.size)[None]), anchor)
    energies, gradients = singles(theta.expand(many.size, 3))
    assert energies.mean().item() == pytest.approx(energy.item(), rel=1e-12)
    torch.testing.assert_close(gradients.mean(0), gradient, rtol=1e-12, atol=1e-14)
    again = anchored(many.target(torch.arange(many.size)[None]), anchor)(there.expand(many.size, 3))
    assert torch.allclose(again[1], anchor.gradient.expand(many.size, 3), rtol=1e-12, atol=1e-14)


def test_minibatches_have_the_noise_that_the_oracle_says(generator: torch.Generator) -> None:
    """At one θ the covariance of ∇Ū_B over single examples is known; batches divide it by B."""
    theta = many.mean + 0.3
    offset = torch.outer(theta - many.mean, theta - many.mean)
    _, singles = many.target(torch.arange(many.size)[None])(theta.expand(many.size, 3))
    expected = singles.T.cov(correction=0)
    for batch, replace in ((1, True), (20, True), (20, False)):
        factor = (1.0 if replace else (many.size - batch) / (many.size - 1)) / batch
        at_theta = many.gradient_noise(offset, batch, replace)
        cross = _cross(theta)
        torch.testing.assert_close(at_theta + cross * factor, expected * factor)


def _cross(theta: Tensor) -> Tensor:
    """Terms linear in θ − μ, which vanish on average over N(μ, Σ)."""
    x, deviation = many.x, theta - many.mean
    residual, shift = many.y - x @ many.mean, x @ deviation
    second = (x * (-2 * residual * shift / many.noise**2)[:, None]).T @ x / many.size
    mean = -(x.T @ residual) / many.noise / many.size
    moved = x.T @ shift / many.noise / many.size
    return second - torch.outer(mean, moved) - torch.outer(moved, mean)
