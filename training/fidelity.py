"""Is a sampler's predictive the posterior's own? Its chains against those of full-batch HMC.

The sampler passes if it agrees with HMC on at least 99 % of test images, its total variation from
HMC is at most 1.3 times the floor (`training.agreement.compare`), and T_conf is within 5 % of T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.manifest import Check, Verdict
from models.preprocessing import prepare
from models.uncertainty import Array, softmax, summarise
from training import metrics
from training.agreement import Comparison, compare
from training.chains import ChainResult
from training.data import Dataset
from training.diagnostics import configurational_temperature, effective_sample_size, split_rhat
from training.observables import OBSERVABLES
from training.problem import Problem
from training.reference_chain import ReferenceChain
from training.twin import CHAINS, member_logits

MIN_AGREEMENT = 0.99
MAX_FLOORS = 1.3
TEMPERATURE_WITHIN = 0.05


@dataclass(frozen=True)
class Fidelity:
    """What was found.

    Attributes:
        verdict: of `judge`.
        figures: all figures, ready for JSON.
        reference: HMC's predictive of each chain on the test images, thinned, [C, n, K].
        best: HMC's predictive of all its draws, [n, K].
    """

    verdict: Verdict
    figures: dict[str, Any]
    reference: Array
    best: Array


def assess(
    problem: Problem,
    hmc: list[ReferenceChain],
    ours: list[ChainResult],
    foreign: Dataset | None,
) -> Fidelity:
    """Compare finished chains of the twin `problem` on its test images, and on foreign ones.

    Both sides count with as many draws a chain as the sampler kept; HMC's are thinned to them.
    """
    draws = min(len(chain.samples) for chain in ours)
    exact = [chain.samples for chain in hmc]
    kept = [thin(chain.samples, draws) for chain in ours]
    figures = {
        "hmc": _mixing(
            problem, [chain.virial for chain in hmc], [chain.observables for chain in hmc]
        ),
        "sampler": _mixing(
            problem,
            [chain.sampling.virial for chain in ours],
            [chain.sampling.observables for chain in ours],
        ),
    }
    energy = np.stack([chain.energy for chain in hmc])
    figures["hmc"]["split_rhat"]["energy"] = split_rhat(energy)
    figures["hmc"]["effective_sample_size"]["energy"] = effective_sample_size(energy)
    figures["hmc"]["acceptance"] = float(np.mean([chain.acceptance.mean() for chain in hmc]))
    figures["hmc"]["leapfrog_size"] = [float(chain.size) for chain in hmc]
    figures["hmc"]["leapfrog_steps"] = [int(chain.leapfrog_steps) for chain in hmc]
    comparisons: dict[str, Comparison] = {}
    parts = {"test": problem.test} if foreign is None else {"test": problem.test, "ood": foreign}
    for part, images in reversed(parts.items()):
        everything, _ = predictives(problem, exact, images)
        best = everything.mean(axis=0)
        thinned = [thin(samples, draws) for samples in exact]
        reference, figures["hmc"][part] = predictives(problem, thinned, images)
        answers, figures["sampler"][part] = predictives(problem, kept, images)
        comparisons[part] = compare(reference, answers, best)
    verdict = judge(
        comparisons["test"],
        figures["sampler"]["temperature"]["value"],
        problem.recipe.sampler.temperature,
    )
    described = {
        "command": f"python -m training hmc-twin {problem.recipe.name}",
        "recipe": problem.recipe.name,
        "weights": problem.network.num_weights,
        "network": problem.recipe.network.model_dump(),
        "input_shape": problem.input.shape,
        "num_data": problem.posterior.num_data,
        "parts": {part: [images.name, len(images)] for part, images in parts.items()},
        "chains": CHAINS,
        "draws": draws,
        "sampler_settings": problem.recipe.sampler.model_dump(),
        **figures,
        "comparisons": {part: _figures(value) for part, value in comparisons.items()},
        "verdict": verdict.model_dump(),
    }
    return Fidelity(verdict, described, reference, best)


def judge(comparison: Comparison, measured: float, temperature: float) -> Verdict:
    """The pass rule, for T_conf measured in a sampler that was asked for `temperature`."""
    return Verdict(
        checks={
            "agreement": Check(value=round(comparison.agreement, 4), low=MIN_AGREEMENT),
            "total_variation": Check(
                value=round(comparison.total_variation, 5),
                high=round(MAX_FLOORS * comparison.floor_total_variation, 5),
            ),
            "temperature": Check(
                value=round(measured, 4),
                low=temperature * (1 - TEMPERATURE_WITHIN),
                high=temperature * (1 + TEMPERATURE_WITHIN),
            ),
        }
    )


def predictives(
    problem: Problem, samples: list[NDArray[np.float32]], part: Dataset
) -> tuple[Array, dict[str, float]]:
    """Mean probabilities of each chain, [C, n, K], and figures of all draws together."""
    prepared, _ = prepare(part.images, problem.input)
    images = torch.from_numpy(prepared)
    logits = [member_logits(problem.network, chain, images) for chain in samples]
    prediction = summarise(np.concatenate(logits, axis=1))
    figures = {
        "predictive_entropy": float(prediction.predictive_entropy.mean()),
        "mutual_information": float(prediction.mutual_information.mean()),
    }
    if part.classes == problem.labels:
        figures["accuracy"] = metrics.accuracy(prediction.probabilities, part.labels)
        figures["nll"] = metrics.negative_log_likelihood(prediction.probabilities, part.labels)
    return np.stack([softmax(chain).mean(axis=1) for chain in logits]), figures


def thin(samples: NDArray[np.float32], draws: int) -> NDArray[np.float32]:
    """`draws` of the samples [S, D] at equal distances, the last among them."""
    return samples[(np.arange(draws) + 1) * len(samples) // draws - 1]


def _figures(comparison: Comparison) -> dict[str, float]:
    return {
        **asdict(comparison),
        "expected_total_variation": comparison.expected_total_variation,
    }


def _mixing(problem: Problem, virial: list[Array], observables: list[Array]) -> dict[str, Any]:
    """T_conf, R-hat and ESS of chains, from N θ∘∇Ū by layer [t, L] and observables [t, 3]."""
    overall, layers = configurational_temperature(virial, problem.network.layer_sizes)
    trace = np.stack(observables)
    return {
        "temperature": asdict(overall),
        "layers": [asdict(layer) for layer in layers],
        "split_rhat": _each(split_rhat, trace),
        "effective_sample_size": _each(effective_sample_size, trace),
    }


def _each(figure: Callable[[Array], float], trace: Array) -> dict[str, float]:
    return {name: figure(trace[:, :, index]) for index, name in enumerate(OBSERVABLES)}
