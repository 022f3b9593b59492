"""What the callers of `training.samplers.protocol` rely on, for every public sampler."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from training import samplers
from training.schedules import constant

NAMES = sorted(set(samplers.__all__) - {"Info", "Sampler", "State", "Target"})
SHAPES = [(5,), (3, 5)]
N = 50


def build(name: str, generator: torch.Generator, step_size: float = 0.1) -> Any:
    schedule = constant(step_size)
    arguments: dict[str, dict[str, Any]] = {
        "SGLD": {},
        "PSGLD": {"freeze_at": 4},
        "SGHMC": {"momentum": 0.7},
        "BAOAB": {"momentum": 0.7},
        "HMC": {"leapfrog_steps": 3},
        "MALA": {},
    }
    if name == "ConstantSGD":
        return samplers.ConstantSGD(schedule)
    kind = getattr(samplers, name)
    return kind(num_data=N, schedule=schedule, generator=generator, **arguments[name])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def start(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(-1, 2, math.prod(shape), dtype=dtype).reshape(shape)


def target(theta: Tensor) -> tuple[Tensor, Tensor]:
    curvature = torch.arange(1, theta.shape[-1] + 1, dtype=theta.dtype)
    return (curvature * theta.square()).sum(-1) / 2, curvature * theta


def tensors(state: Any) -> dict[str, Tensor]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    assert isinstance(fields.pop("step"), int)
    return {name: value for name, value in fields.items() if value is not None}


every_sampler = pytest.mark.parametrize("name", NAMES)


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_state_and_info_have_their_shapes(
    name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    sampler, position = build(name, seeded()), start(shape, dtype)
    state = sampler.init(position, step=2)
    assert torch.equal(state.position, position)
    assert state.position.data_ptr() != position.data_ptr()
    for index in (3, 4):
        before = state.position.clone()
        state, info = sampler.step(state, target)
        assert state.step == index
        for field, value in tensors(state).items():
            assert value.shape == (shape[:-1] if field == "energy" else shape), field
            assert value.dtype == dtype, field
        energy, force = target(before)
        torch.testing.assert_close(info.energy, energy)
        torch.testing.assert_close(info.virial, before * force)
        assert isinstance(info.step_size, float)
        assert info.acceptance is None or info.acceptance.shape == shape[:-1]
    assert torch.equal(position, start(shape, dtype))
    assert not torch.equal(state.position, position)


@every_sampler
def test_states_share_no_tensor(name: str) -> None:
    sampler, position = build(name, seeded()), start((5,))
    states = [sampler.step(sampler.init(position), target)[0] for _ in range(2)]
    held = [value for state in states for value in tensors(state).values()]
    assert len({value.data_ptr() for value in held}) == len(held)


@every_sampler
def test_one_seed_is_one_path(name: str) -> None:
    ends = []
    for _ in range(2):
        sampler = build(name, seeded())
        state = sampler.init(start((3, 5)))
        for _ in range(6):
            state, _ = sampler.step(state, target)
        ends.append(state.position)
    assert torch.equal(*ends)


@every_sampler
def test_a_restored_state_goes_on_bit_for_bit(name: str) -> None:
    """With a new sampler and generator in every epoch, nothing may live outside the state."""
    generator = seeded()
    sampler = build(name, generator)
    state = sampler.init(start((3, 5)))
    for _ in range(3):
        state, _ = sampler.step(state, target)
    saved = {key: value.clone() for key, value in tensors(state).items()}
    restored = type(state)(**saved, step=state.step)
    noise = generator.get_state()
    for _ in range(4):
        state, _ = sampler.step(state, target)
    other = build(name, torch.Generator().set_state(noise))
    for _ in range(4):
        restored, _ = other.step(restored, target)
    for key, value in tensors(state).items():
        assert torch.equal(value, tensors(restored)[key]), key


@every_sampler
@pytest.mark.parametrize("step_size", [0.0, -0.1, math.inf, math.nan])
def test_refuses_a_step_size_that_is_none(name: str, step_size: float) -> None:
    sampler = build(name, seeded(), step_size)
    with pytest.raises(ValueError, match=r"step size .* must be positive and finite"):
        sampler.step(sampler.init(start((5,))), target)


MEANINGLESS = [
    ("num_data", 0, "num_data must be"),
    ("num_data", -3, "num_data must be"),
    ("temperature", -0.5, "temperature"),
    ("temperature", math.nan, "temperature"),
    ("momentum", 1.0, r"momentum must be in \[0, 1\)"),
    ("momentum", -0.1, r"momentum must be in \[0, 1\)"),
    ("momentum", math.nan, r"momentum must be in \[0, 1\)"),
]
FIELDS = {
    name: {field.name for field in dataclasses.fields(getattr(samplers, name))} for name in NAMES
}


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [(name, *case) for name in NAMES for case in MEANINGLESS if case[0] in FIELDS[name]],
)
def test_refuses_what_has_no_meaning(name: str, field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(build(name, seeded()), **{field: value})
