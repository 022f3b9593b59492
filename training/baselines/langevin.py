"""The posterior at any temperature: the run's own chains, of which T alone differs.

Samples are kept at any ratio of minibatch noise to injected noise, which is infinite at T = 0, and
there is no check at half the step size.

T = 1 is the Bayes posterior, T = 0 is SGD (with momentum, if the sampler has it), and between them
is the cold posterior (Wenzel et al. 2020, arXiv 2002.02405).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.baselines.ensemble import Ensemble, budget, timed
from training.chains import Progress
from training.diagnostics import configurational_temperature
from training.members import thin
from training.recipe import change
from training.run import Run


def langevin(
    run: Run,
    folder: Path,
    temperature: float,
    workers: int | None,
    report: Callable[[Progress], None],
) -> Ensemble:
    """The members that the recipe asks for, from chains at temperature T."""
    settings = {"temperature": temperature, "half_step_epochs": 0, "max_noise_ratio": None}
    recipe = change(run.recipe, {"sampler": settings})
    sampled = Run.create(recipe, folder, run.data_dir)
    _, seconds = timed(lambda: sampled.sample(workers, report), folder / "seconds")
    sampler = recipe.sampler
    members = thin(recipe.members, sampler.chains, sampler.samples, recipe.group)
    virial = [result.sampling.virial for result in sampled.results]
    measured, _ = configurational_temperature(virial, run.problem.network.layer_sizes)
    positions = sampled.samples.positions(members)
    return Ensemble(positions, budget(recipe), seconds, temperature=measured.value)
