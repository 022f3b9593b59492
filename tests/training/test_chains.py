from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from training import chains, checkpoint, pool
from training.chains import Progress, advance, read_result
from training.checkpoint import ChainError, ChainState, path_of, read, samples_of
from training.observables import COORDINATES, OBSERVABLES
from training.posterior import Posterior
from training.problem import Problem
from training.recipe import change
from training.samplers.protocol import Info, Target
from training.samplers.sgld import SGLD, SGLDState

EPOCHS = 8


def with_sampler(problem: Problem, **settings: Any) -> Problem:
    return dataclasses.replace(problem, recipe=change(problem.recipe, {"sampler": settings}))


def stop_after(calls: int) -> Callable[[], bool]:
    answers: Iterator[bool] = iter([False] * calls)
    return lambda: next(answers, True)


def run_chain(
    problem: Problem, file: Path, chain: int = 0, stopped: Callable[[], bool] = lambda: False
) -> bool:
    return advance(problem, chain, file, lambda _: None, stopped)


def state_of(problem: Problem, file: Path) -> ChainState:
    return read(file, problem.network.num_weights)


def bytes_of(file: Path) -> tuple[bytes, bytes]:
    """The whole chain: state and kept weights."""
    samples = samples_of(file)
    return file.read_bytes(), samples.read_bytes() if samples.exists() else b""


def rewrite(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None) -> None:
    save_file({**load_file(file), **tensors}, file, metadata)


@pytest.fixture(autouse=True, scope="module")
def no_denormals() -> Iterator[None]:
    """As the workers of `training.pool` compute."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def finished(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of both chains, run without a break."""
    run = tmp_path_factory.mktemp("finished")
    for chain in range(problem.recipe.sampler.chains):
        assert run_chain(problem, path_of(run, chain), chain)
    return run


def test_reports_every_epoch_and_says_whether_it_was_stopped(
    problem: Problem, tmp_path: Path
) -> None:
    steps: list[Progress] = []
    file = path_of(tmp_path, 1)
    assert not advance(problem, 1, file, steps.append, stop_after(3))
    assert advance(problem, 1, file, steps.append, lambda: False)
    assert [(step.chain, step.epoch, step.epochs) for step in steps] == [
        (1, epoch, EPOCHS) for epoch in range(1, EPOCHS + 1)
    ]
    assert steps[-1].nll < steps[0].nll


def test_shapes_and_finite_values(problem: Problem, finished: Path) -> None:
    result = read_result(finished, 0, problem)
    weights, layers = problem.network.num_weights, len(problem.network.layers)
    assert result.warm.shape == (weights,)
    assert result.samples.shape == (3, weights)
    assert result.samples.dtype == np.float32
    images, classes = len(problem.validation), problem.network.num_classes
    assert result.step_sizes.tolist() == pytest.approx([0.1] * 3)
    assert result.noise_ratio.shape == (layers,)
    for observed, points, epochs in ((result.burn_in, 3, 2), (result.sampling, 6, 4)):
        assert observed.observables.shape == (points, len(OBSERVABLES))
        assert observed.coordinates.shape == (points, COORDINATES)
        assert observed.probabilities.shape == (images, classes)
        assert observed.virial.shape == (epochs, layers)
        assert observed.probabilities.sum(axis=1) == pytest.approx(1)
    arrays = (result.warm, result.samples, result.noise_ratio, *vars(result.sampling).values())
    assert all(np.isfinite(values).all() for values in arrays)
    assert len(result.half_step.observables) == 0


def test_kept_weights_are_on_disk_alone(problem: Problem, finished: Path) -> None:
    weights = 4 * problem.network.num_weights
    checkpoint = path_of(finished, 0)
    assert samples_of(checkpoint).stat().st_size == 3 * weights
    traces = 3 * 8 * len(problem.validation) * problem.network.num_classes
    assert checkpoint.stat().st_size < 3 * weights + traces + 16384
    assert isinstance(read_result(finished, 0, problem).samples, np.memmap)


def test_trace_is_what_the_validation_images_say(problem: Problem, tmp_path: Path) -> None:
    """The last sample and the last trace point are the same weights: the chain's last."""
    run_chain(problem, path_of(tmp_path, 0))
    state = state_of(problem, path_of(tmp_path, 0))
    result = read_result(tmp_path, 0, problem)
    position = state.sampler["position"]
    assert result.samples[-1].tolist() == position.tolist()
    images, labels = problem.tensors(problem.validation)
    with torch.no_grad():
        probabilities = problem.posterior.logits(position, images).double().softmax(1).numpy()
    chosen = probabilities[np.arange(len(labels)), labels]
    assert result.sampling.observables[-1] == pytest.approx(
        [
            -np.log(chosen).mean(),
            (probabilities.argmax(1) == labels.numpy()).mean(),
            -(probabilities * np.log(probabilities)).sum(1).mean(),
        ],
        rel=1e-5,
    )


def test_warm_start_ends_where_burn_in_begins(problem: Problem, tmp_path: Path) -> None:
    file = path_of(tmp_path, 0)
    run_chain(problem, file, stopped=stop_after(2))
    state = state_of(problem, file)
    assert state.epoch == 2
    assert torch.equal(state.warm, state.sampler["position"])
    assert len(state.checksums) == len(state.traces["burn_in"].observables) == 0
    run_chain(problem, file, stopped=stop_after(1))
    later = state_of(problem, file)
    assert torch.equal(later.warm, state.warm)
    assert not torch.equal(later.sampler["position"], state.sampler["position"])


def test_nothing_is_kept_during_burn_in(problem: Problem, tmp_path: Path) -> None:
    file = path_of(tmp_path, 0)
    run_chain(problem, file, stopped=stop_after(4))
    assert len(state_of(problem, file).checksums) == 0
    run_chain(problem, file, stopped=stop_after(4))
    assert len(state_of(problem, file).checksums) == 3


def test_same_seed_gives_the_same_bytes(problem: Problem, finished: Path, tmp_path: Path) -> None:
    run_chain(problem, path_of(tmp_path, 1), 1)
    assert bytes_of(path_of(tmp_path, 1)) == bytes_of(path_of(finished, 1))


@pytest.mark.parametrize("epoch", range(1, EPOCHS))
def test_stopped_after_any_epoch_it_resumes_to_the_same_bytes(
    problem: Problem, finished: Path, tmp_path: Path, epoch: int
) -> None:
    file = path_of(tmp_path, 0)
    assert not run_chain(problem, file, stopped=stop_after(epoch))
    assert state_of(problem, file).epoch == epoch
    assert run_chain(problem, file)
    assert bytes_of(file) == bytes_of(path_of(finished, 0))


def test_chains_and_seeds_differ(problem: Problem, finished: Path, tmp_path: Path) -> None:
    seeded = dataclasses.replace(problem, recipe=change(problem.recipe, {"seed": 2}))
    run_chain(seeded, path_of(tmp_path, 0))
    first, second = (read_result(finished, chain, problem) for chain in (0, 1))
    other = read_result(tmp_path, 0, seeded)
    for one, two in ((first, second), (first, other)):
        assert not np.isclose(one.samples, two.samples, rtol=1e-3).mean() > 0.01


def test_generators_are_independent_of_each_other() -> None:
    keys = [(seed, chain, epoch) for seed in (0, 1) for chain in (0, 1) for epoch in (0, 1, 2)]
    first = {chains.generator(*key).initial_seed() for key in keys}
    assert len(first) == len(keys)
    assert chains.generator(1, 2, 3).initial_seed() == chains.generator(1, 2, 3).initial_seed()


def test_virial_counts_every_step_of_the_sampling_phase(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 trace points in 8 epochs: an interval is two epochs."""
    seen: list[torch.Tensor] = []
    step = SGLD.step

    def recorded(self: SGLD, state: SGLDState, target: Target) -> tuple[SGLDState, Info]:
        state, info = step(self, state, target)
        seen.append(info.virial.double())
        return state, info

    monkeypatch.setattr(SGLD, "step", recorded)
    slow = with_sampler(problem, sampling_epochs=8, trace=4, burn_in_epochs=1)
    run_chain(slow, path_of(tmp_path, 0))
    steps = slow.posterior.num_data // slow.recipe.sampler.batch_size
    mean = slow.posterior.num_data * torch.stack(seen[steps:]).mean(dim=0)
    layers = mean.split([layer.size for layer in slow.network.layers])
    actual = read_result(tmp_path, 0, slow).sampling.virial.mean(axis=0)
    assert actual == pytest.approx([part.sum().item() for part in layers], rel=1e-4)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.write_bytes(b""), "not a readable checkpoint"),
        (lambda file: file.write_bytes(b"\xff" * 200), "not a readable checkpoint"),
        (lambda file: os.truncate(file, file.stat().st_size - 1), "not a readable checkpoint"),
        (lambda file: os.truncate(file, 100), "not a readable checkpoint"),
        (lambda file: save_file({"position": torch.zeros(3)}, file), "not a readable checkpoint"),
        (lambda file: rewrite(file, {}, None), "not a readable checkpoint"),
        (
            lambda file: rewrite(file, {"warm": torch.zeros(3)}, {"epoch": "1"}),
            "made for another network: use another --out",
        ),
    ],
    ids=["empty", "noise", "short by a byte", "cut", "few tensors", "no epoch", "other network"],
)
def test_unusable_checkpoint(
    problem: Problem,
    finished: Path,
    tmp_path: Path,
    damage: Callable[[Path], Any],
    reason: str,
) -> None:
    file = path_of(tmp_path, 0)
    file.parent.mkdir()
    file.write_bytes(path_of(finished, 0).read_bytes())
    damage(file)
    before = file.read_bytes()
    with pytest.raises(ChainError, match=re.escape(reason)) as caught:
        run_chain(problem, file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    assert "delete it to start this chain anew" in message or "--out" in message
    assert file.read_bytes() == before


def test_step_that_is_far_too_long_is_an_error(problem: Problem, tmp_path: Path) -> None:
    start = {"kind": "cooling", "initial": 1e30, "final": 0.1, "epochs": 1}
    wild = with_sampler(problem, schedule=start)
    with pytest.raises(ChainError, match=r"chain 0: the loss .* in epoch 3: take a shorter step"):
        run_chain(wild, path_of(tmp_path, 0))
    assert state_of(problem, path_of(tmp_path, 0)).epoch == 2


def test_weights_that_are_not_finite_are_never_kept(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force = torch.full((problem.network.num_weights,), torch.inf)
    monkeypatch.setattr(Posterior, "gradient", lambda *_: (force, 1.0))
    with pytest.raises(ChainError, match="take a shorter step"):
        run_chain(problem, path_of(tmp_path, 0))


def test_full_disk_keeps_the_older_checkpoint(
    problem: Problem, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = path_of(tmp_path, 0)
    run_chain(problem, file, stopped=stop_after(3))
    before = file.read_bytes()

    def full(_tensors: object, temporary: Path, **_: object) -> None:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(ChainError, match=r"No space left on device.*make room and resume"):
            run_chain(problem, file)
    assert file.read_bytes() == before
    assert {path.suffix for path in file.parent.iterdir()} <= {".safetensors", ".samples"}
    run_chain(problem, file)
    assert bytes_of(file) == bytes_of(path_of(finished, 0))


def test_folder_that_cannot_be_made(problem: Problem, tmp_path: Path) -> None:
    (tmp_path / "chains").write_text("a file")
    with pytest.raises(ChainError, match="cannot be written"):
        run_chain(problem, path_of(tmp_path, 0))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"batch_size": 901}, "batch_size 901 exceeds the 900 training images"),
        ({"samples": 37}, "samples 37 exceeds the 36 steps"),
        ({"trace": 37}, "trace 37 exceeds the 36 steps"),
    ],
)
def test_plan_that_cannot_be_kept(
    problem: Problem, tmp_path: Path, settings: dict[str, int], reason: str
) -> None:
    with pytest.raises(ChainError, match=reason):
        run_chain(with_sampler(problem, **settings), path_of(tmp_path, 0))


def test_every_step_can_be_sampled_and_traced(problem: Problem, tmp_path: Path) -> None:
    dense = with_sampler(problem, samples=36, trace=36)
    run_chain(dense, path_of(tmp_path, 0))
    result = read_result(tmp_path, 0, dense)
    assert len(np.unique(result.samples[:, 0])) == 36
    assert len(result.sampling.observables) == 36


def test_result_of_a_missing_or_unfinished_chain(problem: Problem, tmp_path: Path) -> None:
    with pytest.raises(ChainError, match="chain 0 has not been run: run the sample stage first"):
        read_result(tmp_path, 0, problem)
    run_chain(problem, path_of(tmp_path, 0), stopped=stop_after(EPOCHS - 1))
    with pytest.raises(ChainError, match="unfinished: run the sample stage to resume"):
        read_result(tmp_path, 0, problem)


@pytest.fixture
def endless(problem: Problem) -> Problem:
    return with_sampler(problem, burn_in_epochs=100_000)


def test_killed_process_is_an_error_and_the_chain_resumes_to_the_same_bytes(
    endless: Problem, tmp_path: Path
) -> None:
    def kill(_: Progress) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(ChainError, match="process died: run the same command again to resume"):
        pool.run_all(endless.recipe, None, tmp_path, 1, kill)

    file, unbroken = path_of(tmp_path, 0), tmp_path / "unbroken.safetensors"
    reached = state_of(endless, file).epoch
    run_chain(endless, file, stopped=stop_after(5))
    run_chain(endless, unbroken, stopped=stop_after(reached + 5))
    assert bytes_of(file) == bytes_of(unbroken)


def test_interrupt_lets_the_running_chain_save_its_epoch(endless: Problem, tmp_path: Path) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.run_all(endless.recipe, None, tmp_path, 1, interrupt)
    assert [file.name for file in (tmp_path / "chains").iterdir()] == ["00.safetensors"]
    assert state_of(endless, path_of(tmp_path, 0)).epoch >= 1


def test_failure_of_one_chain_stops_the_others_after_their_epoch(
    endless: Problem, tmp_path: Path
) -> None:
    damaged = path_of(tmp_path, 1)
    damaged.parent.mkdir()
    damaged.write_bytes(b"noise")
    with pytest.raises(ChainError, match=re.escape(f"{damaged}: not a readable checkpoint")):
        pool.run_all(endless.recipe, None, tmp_path, 2, lambda _: None)
    assert damaged.read_bytes() == b"noise"
