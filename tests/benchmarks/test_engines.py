from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.engines import tables
from benchmarks.engines.parity import Parity, answers, compare, verdict
from benchmarks.engines.scaling import thread_counts
from benchmarks.timing import Least, least_times
from models import bundle as bundles
from models.detectors import FUSED
from models.outputs import Outputs
from models.policy import Policy
from training.calibrate import calibrate
from training.evaluate import Answers

SAME = Parity(probability=1e-7, labels=0, accepted=0, flagged=0, company=0.0)
POLICY = Policy(alpha=0.1, min_probability=0.8)


def of(first: list[float], fused: list[float]) -> Answers:
    """Of images with these probabilities of the first of two classes, and fused scores."""
    probabilities = np.stack([first, 1 - np.array(first)], axis=1)
    found = Answers.of(np.log(probabilities)[:, None, :].astype(np.float32))
    return replace(found, scores={**found.scores, FUSED: np.array(fused)})


CALIBRATION = calibrate(FUSED, of([0.9] * 99, list(range(99))))


def test_each_difference_is_counted_once() -> None:
    """A label, an acceptance and a flag: the last takes away the acceptance as well."""
    served = of([0.9, 0.6, 0.9, 0.9], [0.0, 0.0, 0.0, 0.0])
    other = of([0.9, 0.3, 0.79, 0.95], [0.0, 0.0, 0.0, 98.0])
    alone = of([0.9, 0.32], [0.0, 0.0])
    found = compare(served, other, alone, CALIBRATION, POLICY)
    assert (found.labels, found.accepted, found.flagged) == (1, 2, 1)
    assert found.probability == pytest.approx(0.3, abs=1e-6)
    assert found.company == pytest.approx(0.02, abs=1e-6)
    assert not found.holds
    assert compare(served, served, served, CALIBRATION, POLICY) == Parity(0, 0, 0, 0, 0)


def test_all_members_are_asked() -> None:
    """The first of two groups is sure, all members are not."""
    confident = POLICY.model_copy(update={"members": "confident", "settled_at": (0.95,)})
    sure, unsure = of([0.99], [0.0]), of([0.7], [0.0])
    totals = np.stack([sure.totals[:, 0], sure.totals[:, 0] + unsure.totals[:, 0]], axis=1)
    served = replace(sure, totals=np.repeat(sure.totals, 2, axis=1).cumsum(axis=1))
    other = replace(served, totals=totals, prediction=unsure.prediction)
    assert other.decide(CALIBRATION, confident).accepted.all()
    strict = confident.model_copy(update={"min_probability": 0.9})
    assert compare(served, other, other, CALIBRATION, strict).accepted == 1


@pytest.mark.parametrize(
    ("parity", "ratios", "expected"),
    [
        (SAME, {"1": 0.9, "8": 0.5}, "adopt"),
        (SAME, {"1": 1.2, "8": 0.97, "32": 0.5}, "no: no gain at 1, 8"),
        (replace(SAME, labels=1), {"1": 0.5}, "no: decisions differ"),
        (replace(SAME, accepted=1), {"1": 0.5}, "no: decisions differ"),
        (replace(SAME, flagged=1), {"1": 0.5}, "no: decisions differ"),
        (replace(SAME, company=1e-3), {"1": 0.5}, "no: company changes answers"),
        (replace(SAME, flagged=1), {"1": 2.0}, "no: decisions differ; no gain at 1"),
    ],
)
def test_adopted_if_decisions_hold_and_it_is_faster(
    parity: Parity, ratios: dict[str, float], expected: str
) -> None:
    assert verdict(parity, ratios) == expected


def test_images_are_answered_in_batches() -> None:
    bundle = bundles.load(Path("models/pretrained/mnist"))
    spec, (members, units) = bundle.manifest.members, bundle.detectors.feature_shape
    seen: list[int] = []

    def variant(images: NDArray[np.float32]) -> Outputs:
        seen.append(len(images))
        logits = np.zeros((len(images), spec.count, 10), np.float32)
        logits[:, :, 3] = images[:, 0, 0, :1]
        return Outputs(logits, np.zeros((len(images), members, units), np.float32))

    images = np.zeros((5, *bundle.manifest.input.shape), np.float32)
    images[:, 0, 0, 0] = np.arange(1, 6)
    found = answers(variant, images, bundle, 2)
    assert seen == [2, 2, 1]
    assert found.group == spec.group
    chosen = found.prediction.probabilities[:, 3]
    assert np.allclose(chosen, 1 / (1 + 9 * np.exp(-np.arange(1.0, 6))))


@pytest.mark.parametrize(
    ("cpus", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8])]
)
def test_thread_counts(cpus: int, expected: list[int]) -> None:
    assert thread_counts(cpus) == expected


def test_passes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """On clocks that passes move: both times of the faster pass, an image."""
    turns: list[str] = []
    clock = {"wall": 0.0, "cpu": 0.0}
    costs = {"a": iter([(4.0, 2.0), (2.0, 4.0)]), "b": iter([(8.0, 8.0), (9.0, 9.0)])}

    def run(name: str) -> None:
        turns.append(name)
        wall, cpu = next(costs[name])
        clock["wall"] += wall
        clock["cpu"] += cpu

    monkeypatch.setattr("time.perf_counter", lambda: clock["wall"])
    monkeypatch.setattr("time.process_time", lambda: clock["cpu"])
    times = least_times({"a": lambda: run("a"), "b": lambda: run("b")}, images=2, rounds=2)
    assert turns == ["a", "b", "a", "b"]
    assert times == {"a": Least(1.0, 2.0), "b": Least(4.0, 4.0)}


def test_tables() -> None:
    micro = Least(2e-6, 1e-6)
    times = {"1": {"served": micro, "b": Least(1e-6, 5e-7)}, "8": {"served": micro, "b": micro}}
    assert tables.speed(times, {"c": "no compiler"}) == (
        "| µs an image, batch of | 1 | 8 |\n| --- | --- | --- |\n"
        "| served | 1.0 | 1.0 |\n| b | 0.5 | 1.0 |\n| c | failed: no compiler |  |\n"
    )
    assert tables.parities({"served": SAME, "b": SAME}, times, "served").splitlines()[2:] == [
        "| served | 0 | 0 | 0 | 1.0e-07 | 0.0e+00 | served |",
        "| b | 0 | 0 | 0 | 1.0e-07 | 0.0e+00 | no: no gain at 8 |",
    ]
    assert tables.threads({8: {4: {1: micro, 2: Least(1e-6, 123e-6)}}}) == (
        "| batch | members | 1 thread | 2 threads |\n| --- | --- | --- | --- |\n"
        "| 8 | 4 | 2.0 / 1.0 | 1.0 / 123 |\n"
    )
    assert tables.members({4: micro}).endswith("| 4 | 1.0 | 0.2 |\n")
    assert tables.pixels({(28, 1000): micro, (56, 2000): Least(9e-6, 6e-6)}).endswith(
        "| 56 × 56 | 2,000 | 4.0 | 6.0 | 6.0 |\n"
    )
