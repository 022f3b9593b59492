"""Run the HMC twin of a recipe, and judge the recipe's sampler by it (`training.fidelity`).

recipe.json            the recipe: a directory belongs to one recipe
hmc/NN.npz             finished chains of HMC
chains/NN.*            chains of the sampler, saved after every epoch
reference.npz          predictives of HMC on the test images, by chain and of all draws
twin.json              all figures, and the verdict
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training import data, pool, reference_chain
from training.chains import Progress, advance, read_result
from training.checkpoint import ChainError, path_of
from training.data import Dataset
from training.fidelity import Fidelity, assess
from training.problem import formulate
from training.recipe import Recipe
from training.twin import CHAINS, MAX_EDGE, average_pool, twin

OOD_IMAGES = 1000
MIN_DRAWS = 100


@dataclass(frozen=True)
class _Task:
    kind: str
    chain: int
    recipe: Recipe
    data_dir: Path
    out: Path

    def __call__(self, say: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        problem = twin(formulate(self.recipe, self.data_dir))
        name = f"{self.kind} chain {self.chain}"
        if self.kind != "hmc":

            def report(step: Progress) -> None:
                if _is_tenth(step.epoch, step.epochs):
                    say(f"{name}: {step.epoch}/{step.epochs} epochs, NLL {step.nll:.4f}")

            advance(problem, self.chain, path_of(self.out, self.chain), report, stopped)
            return

        def follow(done: int, total: int) -> None:
            if _is_tenth(done, total):
                say(f"{name}: {done}/{total} iterations")

        file = _hmc_path(self.out, self.chain)
        if not file.exists():
            draws = max(MIN_DRAWS, problem.recipe.sampler.samples)
            result = reference_chain.run(problem, self.chain, draws, follow, stopped)
            if result is not None:
                reference_chain.save(file, result)


def run_twin(
    recipe: Recipe, data_dir: Path, out: Path, workers: int, say: Callable[[str], None]
) -> Fidelity:
    """Run what is missing of both sets of chains in `out`, compare them, and write `twin.json`.

    Args:
        recipe: of the problem that is made small.
        data_dir: where data sets are looked for.
        out: directory of the twin; one that was stopped goes on, HMC by whole chains.
        workers: chains side by side.
        say: takes a line of progress.

    Raises:
        ChainError: `out` belongs to another recipe, T is 0, or a chain failed.
    """
    if not recipe.sampler.temperature > 0:
        raise ChainError("HMC needs temperature > 0: a recipe of an optimiser has no posterior")
    _claim(out, recipe)
    tasks = [
        _Task(kind, chain, recipe, data_dir, out)
        for kind in ("hmc", recipe.sampler.name)
        for chain in range(CHAINS)
    ]
    pool.run_tasks(tasks, workers, say)
    problem = twin(formulate(recipe, data_dir))
    hmc = [reference_chain.read(_hmc_path(out, chain)) for chain in range(CHAINS)]
    ours = [read_result(out, chain, problem) for chain in range(CHAINS)]
    result = assess(problem, hmc, ours, _foreign(recipe, data_dir))
    np.savez_compressed(
        out / "reference.npz",
        allow_pickle=False,
        chains=result.reference.astype(np.float16),
        best=result.best.astype(np.float32),
    )
    (out / "twin.json").write_text(json.dumps(result.figures, indent=1) + "\n")
    return result


def _foreign(recipe: Recipe, data_dir: Path) -> Dataset | None:
    """Images of the first OOD set of the recipe, pooled like the twin's."""
    if not recipe.data.ood:
        return None
    part = data.load(recipe.data.ood[0], "test", data_dir)
    chosen = part.select(np.arange(min(OOD_IMAGES, len(part))))
    return average_pool(chosen, -(-max(part.images.shape[1:3]) // MAX_EDGE))


def _claim(out: Path, recipe: Recipe) -> None:
    file = out / "recipe.json"
    content = recipe.model_dump_json(indent=1) + "\n"
    if file.exists() and file.read_text() != content:
        raise ChainError(f"{out} belongs to another recipe (see {file}): use another --out")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def _hmc_path(out: Path, chain: int) -> Path:
    return out / "hmc" / f"{chain:02d}.npz"


def _is_tenth(done: int, total: int) -> bool:
    return done * 10 // total > (done - 1) * 10 // total
