"""Starts, samplers, half steps and limits of a chain; and its kept weights on disk."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training import checkpoint
from training.chains import ChainResult, advance, read_result
from training.checkpoint import ChainError, path_of, read, samples_of
from training.method import pace, step_scale
from training.plan import Plan
from training.problem import Problem
from training.recipe import RecipeError, change
from training.warm_start import descend

SAMPLERS = ("sgld", "psgld", "sghmc", "baoab", "constant-sgd")


def with_sampler(problem: Problem, **settings: Any) -> Problem:
    return dataclasses.replace(problem, recipe=change(problem.recipe, {"sampler": settings}))


def run_chain(
    problem: Problem, run: Path, chain: int = 0, stopped: Callable[[], bool] = lambda: False
) -> bool:
    return advance(problem, chain, path_of(run, chain), lambda _: None, stopped)


def stop_after(calls: int) -> Callable[[], bool]:
    answers: Iterator[bool] = iter([False] * calls)
    return lambda: next(answers, True)


def finish(problem: Problem, run: Path, chain: int = 0) -> ChainResult:
    assert run_chain(problem, run, chain)
    return read_result(run, chain, problem)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("minibatches", ["shuffled", "preferential"])
def test_every_sampler_resumes_to_the_same_bytes(
    problem: Problem, tmp_path: Path, name: str, minibatches: str
) -> None:
    chain = with_sampler(
        problem,
        name=name,
        minibatches=minibatches,
        half_step_epochs=1,
        schedule={"kind": "constant", "step_size": 0.01},
        layer_step={"dense1": 0.5},
    )
    run_chain(chain, tmp_path / "unbroken")
    for epochs in (1, 2, 1, 3, 1):
        run_chain(chain, tmp_path / "broken", stopped=stop_after(epochs))
    run_chain(chain, tmp_path / "broken")
    for file_of in (lambda file: file, samples_of):
        broken, unbroken = (file_of(path_of(tmp_path / name, 0)) for name in ("broken", "unbroken"))
        assert broken.read_bytes() == unbroken.read_bytes()


def test_prior_starts_are_draws_of_the_prior_and_take_langevin_steps_alone(
    problem: Problem, tmp_path: Path
) -> None:
    both = with_sampler(problem, prior_starts=1)
    assert [both.recipe.sampler.starts_from_prior(chain) for chain in range(4)] == [
        False,
        True,
        False,
        False,
    ]
    run_chain(both, tmp_path, 1, stop_after(0))
    assert not path_of(tmp_path, 1).exists()
    run_chain(both, tmp_path, 1, stop_after(1))
    first = read(path_of(tmp_path, 1), problem.network.num_weights)
    assert set(first.sampler) == {"position"}
    spread = (first.warm / problem.posterior.prior.std).square().mean().item()
    assert spread == pytest.approx(1, abs=4.5 * np.sqrt(2 / len(first.warm)))
    assert len(finish(both, tmp_path, 1).samples) == 3
    plan = Plan.of(both)
    rising = [plan.step_size(step) for step in range(plan.first_step(0), 1)]
    assert rising[0] == pytest.approx(0.4 / 19)
    assert rising[-1] == pytest.approx(0.4)
    assert np.diff(rising) == pytest.approx(0.4 / 19)


def test_half_steps_are_half_as_long_and_kept_apart(problem: Problem, tmp_path: Path) -> None:
    plain = finish(problem, tmp_path / "plain")
    halved_problem = with_sampler(problem, half_step_epochs=2)
    halved = finish(halved_problem, tmp_path / "halved")
    plan = Plan.of(halved_problem)
    assert plan.step_size(plan.first_step(plan.half_step_epoch)) == pytest.approx(0.05)
    assert plan.longest_step == pytest.approx(0.1)
    assert np.array_equal(halved.samples, plain.samples)
    assert np.array_equal(halved.sampling.observables, plain.sampling.observables)
    assert len(plain.half_step.observables) == 0
    assert len(halved.half_step.observables) == 4
    assert len(halved.half_step.virial) == 2


def test_cycles_keep_weights_at_their_ends_alone(problem: Problem, tmp_path: Path) -> None:
    """Cycles of two epochs, 18 steps: the stage that is sampled is the last 9 of them."""
    cyclical = {"kind": "cyclical", "initial": 0.4, "cycle_epochs": 2, "exploration": 0.5}
    chain = with_sampler(problem, schedule=cyclical, samples=2, half_step_epochs=2)
    plan = Plan.of(chain)
    first = plan.first_step(plan.sampling_epoch)
    assert sorted(plan.sample_at) == [first + 17, first + 35]
    assert plan.longest_step == pytest.approx(0.2)
    assert plan.step_size(first) == pytest.approx(0.4)
    assert plan.step_size(plan.first_step(plan.half_step_epoch)) == pytest.approx(0.2)
    result = finish(chain, tmp_path)
    assert (result.step_sizes < 0.01).all()
    assert len(result.sampling.virial) == 2
    assert len(result.half_step.virial) == 1


def test_cold_exploration_is_the_walk_at_temperature_zero(problem: Problem, tmp_path: Path) -> None:
    cyclical = {"kind": "cyclical", "initial": 0.4, "cycle_epochs": 6, "exploration": 0.5}
    chains = {
        "cold": with_sampler(problem, schedule={**cyclical, "cold_exploration": True}),
        "hot": with_sampler(problem, schedule=cyclical),
        "frozen": with_sampler(problem, schedule=cyclical, temperature=0.0),
    }
    position = {}
    for name, chain in chains.items():
        run_chain(chain, tmp_path / name, stopped=stop_after(4))
        state = read(path_of(tmp_path / name, 0), problem.network.num_weights)
        position[name] = state.sampler["position"]
    assert torch.equal(position["cold"], position["frozen"])
    assert torch.isclose(position["hot"], position["frozen"], rtol=1e-3).double().mean() < 0.01


def test_layer_step_is_a_step_of_that_size_in_that_layer(problem: Problem, tmp_path: Path) -> None:
    """A factor on every layer is a factor on the step size, but for rounding."""
    settings = {"burn_in_epochs": 0, "sampling_epochs": 1, "samples": 2, "trace": 4}
    scaled = with_sampler(
        problem,
        schedule={"kind": "constant", "step_size": 0.2},
        layer_step={"dense1": 0.25, "dense2": 0.25},
        **settings,
    )
    plain = with_sampler(problem, schedule={"kind": "constant", "step_size": 0.05}, **settings)
    first, second = finish(scaled, tmp_path / "scaled"), finish(plain, tmp_path / "plain")
    np.testing.assert_allclose(first.samples, second.samples, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(first.sampling.virial, second.sampling.virial, rtol=1e-3)
    assert 0.2 * first.noise_ratio == pytest.approx(0.05 * second.noise_ratio, rel=1e-3)
    assert step_scale(with_sampler(problem, layer_step={"dense2": 4.0})).unique().tolist() == [1, 2]


def test_unknown_layer_in_layer_step(problem: Problem) -> None:
    with pytest.raises(ChainError, match=r"layer_step names conv9: .* dense1, dense2"):
        step_scale(with_sampler(problem, layer_step={"conv9": 0.5}))


def test_step_beyond_the_stability_limit_is_refused(problem: Problem, tmp_path: Path) -> None:
    calm = {"kind": "cooling", "initial": 0.05, "final": 20.0, "epochs": 2}
    with pytest.raises(ChainError, match=r"step size 20 is beyond the stability limit 2/λ = "):
        run_chain(with_sampler(problem, schedule=calm), tmp_path)


def test_no_sample_is_kept_while_gradient_noise_is_too_large(
    problem: Problem, tmp_path: Path
) -> None:
    fixed = {"kind": "constant", "step_size": 0.1}
    with pytest.raises(ChainError, match=r"no sample was kept: .* max_noise_ratio: take shorter"):
        run_chain(with_sampler(problem, max_noise_ratio=1e-9, schedule=fixed), tmp_path / "none")
    kept = finish(with_sampler(problem, max_noise_ratio=1.0, schedule=fixed), tmp_path / "all")
    assert len(kept.samples) == 3
    limit = 2 * 0.1 * kept.noise_ratio.max()
    assert run_chain(
        with_sampler(problem, max_noise_ratio=limit, schedule=fixed), tmp_path / "sgld"
    )
    faster = with_sampler(problem, name="baoab", max_noise_ratio=limit, schedule=fixed)
    with pytest.raises(ChainError, match="no sample was kept"):
        run_chain(faster, tmp_path / "baoab")


def test_pace_of_samplers_with_momentum(problem: Problem) -> None:
    """That of SGLD is 1; without momentum SGHMC is SGLD at 2 η, and BAOAB is SGLD."""
    paces = {
        (name, momentum): pace(with_sampler(problem, name=name, momentum=momentum).recipe.sampler)
        for name in SAMPLERS
        for momentum in (0.0, 0.9)
    }
    assert paces["sgld", 0.9] == paces["psgld", 0.9] == paces["baoab", 0.0] == 1
    assert paces["sghmc", 0.0] == 2
    assert paces["baoab", 0.9] == pytest.approx(19)
    assert paces["sghmc", 0.9] == pytest.approx(20)


def test_samples_begin_when_a_falling_step_has_quietened_the_noise(
    problem: Problem, tmp_path: Path
) -> None:
    falling = {"kind": "polynomial", "a": 1.0, "b": 10.0, "gamma": 0.6}
    every = with_sampler(problem, schedule=falling, samples=36, trace=36)
    full = finish(every, tmp_path / "full")
    limit = full.step_sizes[20] * full.noise_ratio.max() * (1 + 1e-9)
    late = finish(with_sampler(every, max_noise_ratio=limit), tmp_path / "late")
    assert (np.diff(full.step_sizes) < 0).all()
    assert late.step_sizes.tolist() == full.step_sizes[20:].tolist()
    assert np.array_equal(late.samples, full.samples[20:])


def test_weights_appended_before_a_kill_are_cut_off(problem: Problem, tmp_path: Path) -> None:
    run_chain(problem, tmp_path / "unbroken")
    run_chain(problem, tmp_path / "broken", stopped=stop_after(6))
    file = samples_of(path_of(tmp_path / "broken", 0))
    with open(file, "ab") as stream:
        stream.write(os.urandom(10_000))
    run_chain(problem, tmp_path / "broken")
    assert file.read_bytes() == samples_of(path_of(tmp_path / "unbroken", 0)).read_bytes()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.unlink(), "does not hold 3 samples"),
        (lambda file: os.truncate(file, 1000), "does not hold 3 samples"),
        (lambda file: file.write_bytes(bytes(file.stat().st_size)), "sample 0 is damaged"),
    ],
    ids=["missing", "short", "overwritten"],
)
def test_damaged_samples(
    problem: Problem, tmp_path: Path, damage: Callable[[Path], Any], reason: str
) -> None:
    run_chain(problem, tmp_path)
    file = samples_of(path_of(tmp_path, 0))
    damage(file)
    with pytest.raises(ChainError, match=re.escape(f"{file}: {reason}")) as caught:
        read_result(tmp_path, 0, problem)
    assert "to run this chain anew" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_full_disk_while_samples_are_appended(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_chain(problem, tmp_path, stopped=stop_after(6))
    before = read(path_of(tmp_path, 0), problem.network.num_weights)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", full)
        with pytest.raises(ChainError, match=r"No space left on device.*make room and resume"):
            run_chain(problem, tmp_path)
    after = read(path_of(tmp_path, 0), problem.network.num_weights)
    assert after.epoch == before.epoch
    assert torch.equal(after.checksums, before.checksums)
    assert len(finish(problem, tmp_path).samples) == 3


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"prior_starts": 2}, "prior_starts exceed half of the chains"),
        ({"momentum": 1.0}, "less than 1"),
        ({"layer_step": {"dense1": 0.0}}, "greater than 0"),
        ({"max_noise_ratio": 0.0}, "greater than 0"),
        ({"name": "adam"}, "'sgld', 'psgld', 'sghmc', 'baoab' or 'constant-sgd'"),
    ],
)
def test_settings_that_are_refused(problem: Problem, settings: Any, reason: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(reason)):
        with_sampler(problem, **settings)


@pytest.mark.parametrize(("start", "keeps"), [("likelihood", True), ("map", False)])
def test_warm_start_on_the_likelihood_leaves_free_weights_their_spread(
    problem: Problem, start: str, keeps: bool
) -> None:
    """Images that are all zero say nothing of the first layer's weights."""
    begun = with_sampler(problem, warm_start=start, warm_start_epochs=1)
    images, labels = begun.tensors(begun.train)
    randomness = torch.Generator().manual_seed(3)
    position = begun.posterior.prior.draw(randomness)
    before, free = position.clone(), begun.network.layers[0].size - 32
    data = torch.zeros_like(images), labels
    descend(begun, position, torch.zeros_like(position), 0, data, randomness)
    assert torch.equal(position[:free], before[:free]) is keeps
    assert position[:free].norm() <= before[:free].norm()
    assert not torch.equal(position[free:], before[free:])
