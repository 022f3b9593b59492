"""Which prior scale predicts held-out training images best?

    python -m benchmarks.prior --out DIR [--recipe mnist] [--gains 1 2 4 8] [--families gaussian]
                               [--chains 4] [--validation 6000] [--data-dir DATA] [--workers 2]

Runs the recipe's own sampler, with few chains, for every prior σ² = gain / fan-in of all layers but
the first, whose gain stays, and every family; prints the NLL, ECE and accuracy of the mean
prediction of all chains on validation images that are held out of the training file. Neither
calibration nor test images are touched. It can be stopped and resumed.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from training import metrics
from training import recipe as recipes
from training.chains import Progress
from training.checkpoint import ChainError
from training.data import DataError, data_directory
from training.recipe import Recipe, RecipeError, change
from training.run import Run, RunError
from training.verdict import diagnose


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prior", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--recipe", default="mnist", help="name, or path of a .toml file")
    parser.add_argument("--gains", type=float, nargs="+", default=[1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--families", nargs="+", default=["gaussian"])
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--validation", type=int, default=6000, help="images held out")
    parser.add_argument("--data-dir", type=Path, help="folder with data sets")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    try:
        recipe = recipes.load(options.recipe)
        print(f"{recipe.name}, seed {recipe.seed}; {describe('torch')}\n")
        print(
            "| family | gain | NLL (nats) | ECE | accuracy (%) | one weight vector: NLL | T_conf |"
        )
        print("|---|---|---|---|---|---|---|")
        for family, gain in product(options.families, options.gains):
            candidate = with_prior(recipe, family, gain, options.chains, options.validation)
            folder = options.out / f"{family}-{gain:g}"
            run = Run.create(candidate, folder, data_directory(options.data_dir))
            run.sample(options.workers, _say)
            print(_row(run), flush=True)
    except (ChainError, DataError, RecipeError, RunError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes")


def with_prior(recipe: Recipe, family: str, gain: float, chains: int, validation: int) -> Recipe:
    """The recipe with another prior, fewer chains and more validation images.

    Raises:
        RecipeError: the recipe's prior has no gain for each layer.
    """
    gains = recipe.prior.weight_gain
    if not isinstance(gains, dict):
        raise RecipeError(f"{recipe.name}: prior.weight_gain must name the layers")
    first, *others = gains
    prior = {"family": family, "weight_gain": {first: gains[first], **dict.fromkeys(others, gain)}}
    return change(
        recipe,
        {
            "prior": prior,
            "data": {"validation": validation},
            "members": min(recipe.members, chains * recipe.sampler.samples),
            "sampler": {
                "chains": chains,
                "half_step_epochs": 0,
                "prior_starts": min(recipe.sampler.prior_starts, chains // 2),
            },
        },
    )


def _row(run: Run) -> str:
    labels = run.problem.validation.labels
    probabilities = np.mean([result.sampling.probabilities for result in run.results], axis=0)
    _, figures = diagnose(run.problem, run.results)
    prior = run.recipe.prior
    assert isinstance(prior.weight_gain, dict)
    return (
        f"| {prior.family} | {list(prior.weight_gain.values())[-1]:g} "
        f"| {metrics.negative_log_likelihood(probabilities, labels):.4f} "
        f"| {metrics.calibration_error(probabilities, labels):.4f} "
        f"| {100 * metrics.accuracy(probabilities, labels):.2f} "
        f"| {figures['observables']['nll']['mean']:.4f} "
        f"| {figures['temperature']['value']:.3f} |"
    )


def _say(step: Progress) -> None:
    if step.epoch == step.epochs:
        print(f"chain {step.chain} finished", file=sys.stderr)


if __name__ == "__main__":
    main()
