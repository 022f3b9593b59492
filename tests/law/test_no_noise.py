"""Oracle 2: at T = 0 every sampler is an optimiser whose path is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.networks import build
from training.posterior import Posterior
from training.samplers import BAOAB, PSGLD, SGHMC, SGLD, ConstantSGD, Sampler
from training.samplers.psgld import PSGLDState
from training.schedules import Schedule, constant, polynomial


@pytest.mark.parametrize("schedule", [constant(0.05), polynomial(0.2, 10.0, 0.55)])
@pytest.mark.parametrize("name", ["sgld", "constant_sgd"])
def test_sgd_bit_for_bit(name: str, schedule: Schedule) -> None:
    num_data, prior_std = 400, 0.5
    network = build("lenet", (1, 14, 14), 4, channels=(3,), kernel=5, hidden=(6,))
    posterior = Posterior.build(network, num_data, dict.fromkeys(network.shapes, prior_std))
    randomness = torch.Generator().manual_seed(5)
    images = torch.randn(num_data, 1, 14, 14, generator=randomness)
    labels = torch.randint(0, 4, (num_data,), generator=randomness)
    start = posterior.prior.draw(randomness)

    sampler: Sampler = {  # type: ignore[type-arg]
        "sgld": SGLD(num_data, schedule, torch.Generator().manual_seed(0), temperature=0.0),
        "constant_sgd": ConstantSGD(schedule),
    }[name]
    state = sampler.init(start)
    weights = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.SGD([weights], lr=1.0)
    for step in range(50):
        batch = slice(8 * step, 8 * step + 8)

        def gradient(position: torch.Tensor, batch: slice = batch) -> torch.Tensor:
            return posterior.gradient(position, images[batch], labels[batch])[0]

        optimiser.param_groups[0]["lr"] = schedule(step)
        weights.grad = gradient(weights.data)
        optimiser.step()
        state, _ = sampler.step(state, lambda w, g=gradient: (w.sum(), g(w)))
        assert torch.equal(state.position, weights.data)


def test_prior_equals_the_weight_decay_of_torch() -> None:
    """θ/(N σ²) is weight_decay = 1/(N σ²): SGD with it walks the same path."""
    num_data, prior_std = 400, 0.5
    network = build("mlp", (1, 3, 3), 3, hidden=(4,))
    posterior = Posterior.build(network, num_data, dict.fromkeys(network.shapes, prior_std))
    randomness = torch.Generator().manual_seed(5)
    images = torch.randn(64, 1, 3, 3, generator=randomness, dtype=torch.float64)
    labels = torch.randint(0, 3, (64,), generator=randomness)
    start = posterior.prior.draw(randomness).double()

    sampler = SGLD(num_data, constant(0.3), torch.Generator(), temperature=0.0)
    state = sampler.init(start)
    weights = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.SGD([weights], lr=0.3, weight_decay=1 / (num_data * prior_std**2))
    for _ in range(20):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(posterior.logits(weights, images), labels).backward()
        optimiser.step()
        state, _ = sampler.step(state, posterior.target(images, labels))
    torch.testing.assert_close(state.position, weights.data, rtol=1e-12, atol=1e-14)


CURVATURE = torch.tensor([3.0, 0.5, 1.0, 20.0], dtype=torch.float64)
START = torch.tensor([1.0, -2.0, 0.5, 0.1], dtype=torch.float64)


def bumpy(theta: Tensor) -> tuple[Tensor, Tensor]:
    return theta.sum(-1), CURVATURE * theta + torch.sin(3 * theta)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("method", [SGHMC, BAOAB])
def test_momentum_samplers_are_sgd_with_momentum(
    method: type[SGHMC] | type[BAOAB], momentum: float
) -> None:
    """From rest: SGHMC is heavy-ball SGD with learning rate 2η, BAOAB with (1 + c) η."""
    num_data, step_size = 60_000, 0.01
    sampler = method(num_data, constant(step_size), torch.Generator(), momentum, 0.0)
    state = sampler.init(START)
    assert not state.momentum.any()
    weights = torch.nn.Parameter(START.clone())
    rate = (2 if method is SGHMC else 1 + momentum) * step_size
    optimiser = torch.optim.SGD([weights], lr=rate, momentum=momentum)
    for _ in range(40):
        weights.grad = bumpy(weights.data)[1]
        optimiser.step()
        state, _ = sampler.step(state, bumpy)
        torch.testing.assert_close(state.position, weights.data, rtol=1e-11, atol=1e-13)


def test_psgld_by_hand() -> None:
    """G comes from the gradients before the step, has mean 1, and stays as it is when frozen."""
    decay, floor, step_size = 0.9, 0.01, 0.02
    sampler = PSGLD(100, constant(step_size), torch.Generator(), 3, 0.0, decay, floor)
    state = sampler.init(START)
    theta, mean_square = START.tolist(), [0.0] * 4
    for step in range(6):
        gradient = bumpy(torch.tensor(theta, dtype=torch.float64))[1].tolist()
        raw = [1 / (v**0.5 + floor) for v in mean_square]
        scale = [value / (sum(raw) / 4) for value in raw]
        theta = [t - step_size * g * f for t, g, f in zip(theta, scale, gradient, strict=True)]
        if step < 3:
            mean_square = [
                decay * v + (1 - decay) * f**2 for v, f in zip(mean_square, gradient, strict=True)
            ]
        state, _ = sampler.step(state, bumpy)
        assert state.position.tolist() == pytest.approx(theta, rel=1e-12)
        assert state.mean_square.tolist() == pytest.approx(mean_square, rel=1e-12)


def test_an_equal_preconditioner_changes_nothing() -> None:
    sampler = PSGLD(100, constant(0.02), torch.Generator(), 0, 0.0)
    plain = SGLD(100, constant(0.02), torch.Generator(), 0.0)
    state, other = PSGLDState(START.clone(), torch.full_like(START, 7.0), 0), plain.init(START)
    for _ in range(20):
        state, _ = sampler.step(state, bumpy)
        other, _ = plain.step(other, bumpy)
    torch.testing.assert_close(state.position, other.position, rtol=1e-13, atol=1e-15)


def test_constant_sgd_with_a_preconditioner_by_hand() -> None:
    diagonal = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)
    other = torch.full((4, 4), 0.05, dtype=torch.float64) + diagonal.diag()
    for preconditioner, matrix in ((diagonal, diagonal.diag()), (other, other)):
        sampler = ConstantSGD(constant(0.02), preconditioner)
        state, _ = sampler.step(sampler.init(START), bumpy)
        expected = START - 0.02 * matrix @ bumpy(START)[1]
        torch.testing.assert_close(state.position, expected, rtol=1e-14, atol=0.0)
