"""The twin's construction, and the recipe's sampler on it against a stored HMC reference."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from models.manifest import Verdict
from training import pool, reference_chain, twin_run
from training import recipe as recipes
from training.agreement import compare
from training.chains import advance, read_result
from training.checkpoint import ChainError, path_of
from training.data import from_arrays
from training.diagnostics import configurational_temperature
from training.fidelity import judge, predictives
from training.pool import Task
from training.problem import Problem, formulate
from training.twin import CHAINS, MAX_WEIGHTS, average_pool, twin
from training.twin_run import run_twin
from training.twin_table import tables

FIXTURES = Path(__file__).parent / "fixtures"
SHORT = {
    "warm_start_epochs": 20,
    "burn_in_epochs": 60,
    "sampling_epochs": 60,
    "schedule": {"kind": "cooling", "initial": 0.4, "final": 0.1, "epochs": 30},
}


@pytest.fixture(autouse=True, scope="module")
def no_denormals() -> Iterator[None]:
    """As the processes of a twin compute."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def digits() -> Problem:
    return twin(formulate(recipes.load("digits"), None))


@dataclasses.dataclass(frozen=True)
class Reference:
    """Predictives of HMC on the test digits: of each chain [6, 500, 10], and of all draws."""

    chains: NDArray[np.float64]
    best: NDArray[np.float64]


@pytest.fixture(scope="module")
def reference() -> Reference:
    with np.load(FIXTURES / "digits_twin.npz", allow_pickle=False) as archive:
        return Reference(*(archive[name].astype(np.float64) for name in ("chains", "best")))


def sample(
    problem: Problem, run: Path, chains: int = CHAINS, **settings: Any
) -> tuple[NDArray[np.float64], float]:
    """Predictives [C, n, K] and T_conf of the recipe's sampler, with other settings."""
    recipe = recipes.change(problem.recipe, {"sampler": settings})
    problem = dataclasses.replace(problem, recipe=recipe)
    for chain in range(chains):
        assert advance(problem, chain, path_of(run, chain), lambda _: None, lambda: False)
    results = [read_result(run, chain, problem) for chain in range(chains)]
    virial = np.stack([result.sampling.virial for result in results])
    weights = np.array([layer.size for layer in problem.network.layers], dtype=np.float64)
    ours, _ = predictives(problem, [result.samples for result in results], problem.test)
    return ours, configurational_temperature(virial, weights)[0].value


def verdict_of(reference: Reference, ours: NDArray[np.float64], measured: float) -> Verdict:
    comparison = compare(reference.chains[: len(ours)], ours, reference.best)
    print(comparison, comparison.expected_total_variation, measured)
    return judge(comparison, measured, temperature=1.0)


def test_the_twin_of_digits_is_digits_with_six_chains(digits: Problem) -> None:
    whole = formulate(recipes.load("digits"), None)
    assert digits.network.shapes == whole.network.shapes
    assert digits.posterior.num_data == whole.posterior.num_data
    assert digits.posterior.prior.std.equal(whole.posterior.prior.std)
    others: dict[str, Any] = {
        "sampler": {"chains", "half_step_epochs"},
        "network": {"channels"},
    }
    assert digits.recipe.model_dump(exclude=others) == whole.recipe.model_dump(exclude=others)
    assert digits.recipe.sampler.half_step_epochs == 0
    assert digits.recipe.sampler.chains == CHAINS


def test_a_large_problem_is_pooled_narrowed_and_stretched(digits: Problem) -> None:
    generator = np.random.default_rng(0)
    train = from_arrays(
        generator.integers(0, 256, (4000, 28, 28, 1), np.uint8),
        np.arange(4000) % 10,
        digits.labels,
    )
    part = train.select(np.arange(300))
    recipe = recipes.change(
        recipes.load("mnist"), {"sampler": {"batch_size": 125}, "data": {"ood": ()}}
    )
    posterior = dataclasses.replace(digits.posterior, num_data=4000)
    whole = Problem(
        recipe, digits.labels, digits.input, digits.network, posterior, train, part, part, part
    )
    small = twin(whole)
    assert small.network.name == "lenet"
    assert small.input.shape == (1, 14, 14)
    assert 2000 < small.network.num_weights <= MAX_WEIGHTS
    assert np.bincount(small.train.labels).tolist() == [100] * 10
    assert small.posterior.num_data == 1000
    first = small.network.layers[0]
    gains = small.recipe.prior.weight_gain
    assert isinstance(gains, dict)
    std = (gains["conv1"] / first.fan_in) ** 0.5
    assert small.posterior.prior.std[0].item() == pytest.approx(std)
    before, after = recipe.sampler, small.recipe.sampler
    assert after.batch_size == 125
    for name in ("warm_start_epochs", "burn_in_epochs", "sampling_epochs"):
        assert getattr(after, name) * (1000 // 125) == getattr(before, name) * (4000 // 125)
    assert after.schedule.model_dump() == {**before.schedule.model_dump(), "epochs": 40}
    assert after.samples == before.samples
    assert len(small.tensors(small.test)[0]) == 300


def test_pooling_averages_squares_and_cuts_what_is_left_over(digits: Problem) -> None:
    images = np.zeros((1, 5, 4, 1), np.uint8)
    images[0, :2, :2, 0] = [[10, 20], [30, 42]]
    images[0, 4] = 255
    pooled = average_pool(from_arrays(images, np.zeros(1, np.int64), ("a",)), 2)
    assert pooled.images[0, :, :, 0].tolist() == [[26, 0], [0, 0]]


def test_the_reference_is_what_its_figures_say(digits: Problem, reference: Reference) -> None:
    figures = json.loads((FIXTURES / "digits_twin.json").read_text())
    assert figures["command"] == "python -m training hmc-twin digits"
    assert reference.chains.shape == (CHAINS, len(digits.test), 10)
    np.testing.assert_allclose(reference.chains.sum(axis=2), 1, atol=5e-3)
    accuracy = (reference.chains.mean(axis=0).argmax(axis=1) == digits.test.labels).mean()
    assert accuracy == pytest.approx(figures["hmc"]["test"]["accuracy"], abs=1e-9)
    floor = compare(reference.chains, reference.chains, reference.best).floor_total_variation
    assert floor == pytest.approx(figures["comparisons"]["test"]["floor_total_variation"], abs=1e-4)
    assert figures["hmc"]["temperature"]["value"] == pytest.approx(1, abs=0.01)
    assert max(figures["hmc"]["split_rhat"].values()) < 1.02


def test_tables_show_both_sides() -> None:
    figures = json.loads((FIXTURES / "digits_twin.json").read_text())
    text = io.StringIO()
    for table in tables(figures):
        Console(file=text, width=120).print(table)
    for side in ("hmc", "sampler"):
        assert f"{figures[side]['temperature']['value']:.4f} ±" in text.getvalue()
        assert f"{figures[side]['test']['mutual_information']:.4f}" in text.getvalue()
    assert f"{figures['comparisons']['test']['total_variation']:.4f}" in text.getvalue()


def test_sgld_agrees_with_hmc(digits: Problem, reference: Reference, tmp_path: Path) -> None:
    """By the rule of `hmc-twin`, at two thirds of its chains and half of the recipe's steps."""
    schedule = {"kind": "cooling", "initial": 0.4, "final": 0.1, "epochs": 100}
    verdict = verdict_of(
        reference,
        *sample(digits, tmp_path, 4, burn_in_epochs=200, sampling_epochs=400, schedule=schedule),
    )
    assert verdict.verified, verdict.failed


@pytest.mark.parametrize("temperature", [30.0, 1e-3])
def test_another_temperature_fails_by_its_predictives_alone(
    digits: Problem, reference: Reference, tmp_path: Path, temperature: float
) -> None:
    ours, measured = sample(digits, tmp_path, temperature=temperature, **SHORT)
    assert "total_variation" in verdict_of(reference, ours, 1.0).failed
    assert "temperature" in verdict_of(reference, ours, measured).failed


def test_a_step_that_is_too_small_fails_by_its_temperature(
    digits: Problem, reference: Reference, tmp_path: Path
) -> None:
    """The chains never leave the neighbourhood of their warm start, which is colder."""
    settings = {**SHORT, "schedule": {"kind": "constant", "step_size": 1e-3}}
    assert "temperature" in verdict_of(reference, *sample(digits, tmp_path, **settings)).failed


def test_a_twin_runs_resumes_and_belongs_to_one_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First with few HMC iterations in this process, then in another for a chain that is lost."""

    def run_here(tasks: Sequence[Task], workers: int, say: Callable[[str], None]) -> None:
        for task in tasks:
            task(say, lambda: False)

    small = {
        "network": {"hidden": [4]},
        "members": 4,
        "sampler": {
            "warm_start_epochs": 4,
            "burn_in_epochs": 4,
            "sampling_epochs": 8,
            "samples": 4,
            "trace": 8,
            "schedule": {"kind": "constant", "step_size": 0.05},
        },
    }
    recipe = recipes.change(recipes.load("digits"), small)
    folder = tmp_path / "twin"
    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(pool, "run_tasks", run_here)
        patch.setattr(twin_run, "MIN_DRAWS", 6)
        patch.setattr(reference_chain, "BURN_IN", 12)
        first = run_twin(recipe, tmp_path, folder, 1, lines.append)
    assert {line.partition(":")[0] for line in lines} == {
        f"{kind} chain {chain}" for kind in ("hmc", "sgld") for chain in range(CHAINS)
    }
    assert json.loads((folder / "twin.json").read_text()) == json.loads(json.dumps(first.figures))
    assert first.figures["draws"] == 4

    path_of(folder, 3).unlink()
    lines.clear()
    again = run_twin(recipe, tmp_path, folder, 1, lines.append)
    assert {line.partition(":")[0] for line in lines} == {"sgld chain 3"}
    assert again.figures == first.figures

    with pytest.raises(ChainError, match="another recipe"):
        run_twin(recipes.change(recipe, {"seed": 2}), tmp_path, folder, 1, lines.append)
    cold = recipes.change(recipe, {"sampler": {"temperature": 0.0}})
    with pytest.raises(ChainError, match="temperature > 0"):
        run_twin(cold, tmp_path, tmp_path / "cold", 1, lines.append)
