"""What `benchmarks.uncertainty` says of a score, of a method, and of the gate on one seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.gate import decisions, joint_score, policy_of
from benchmarks.scod import scod
from benchmarks.sets import Grouped
from models.conformal import ConformalTest
from models.detectors import FUSED
from models.uncertainty import Array
from training import metrics
from training.calibrate import calibrate
from training.data import Dataset
from training.evaluate import Answers, Labels, quality
from training.recipe import Levels

FLAG_AT, LEAK_AT = 0.01, 0.001
SPLITS = 20
RANKING = "max_probability"


def separations(scores: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """Figures of one score by foreign set, and the share of test images that it flags.

    `auroc`, `fpr95`, `fpr99`: of the set against the test images. `leak`: share of the set that is
    accepted at a false-alarm rate of 0.1 %, by thresholds from halves of the calibration images.
    """
    calibration, test = scores["calibration"], scores["test"]
    randomness = np.random.default_rng(0)
    halves = [
        ConformalTest.fit(randomness.permutation(calibration)[: len(calibration) // 2])
        for _ in range(SPLITS)
    ]

    def accepted(values: Array, alpha: float) -> list[float]:
        return [float(np.mean(half.p_values(values) > alpha)) for half in halves]

    figures = {
        name: {
            "auroc": metrics.auroc(test, values),
            "fpr95": metrics.missed_at(test, values, 0.95),
            "fpr99": metrics.missed_at(test, values, 0.99),
            "leak": float(np.mean(accepted(values, LEAK_AT))),
        }
        for name, values in scores.items()
        if name not in ("calibration", "test")
    }
    rates = accepted(test, FLAG_AT)
    figures["test"] = {"flagged": 1 - float(np.mean(rates)), "spread": float(np.std(rates))}
    return figures


def method_figures(answers: Grouped[Answers], sets: Grouped[Dataset]) -> dict[str, Any]:
    """Quality on the test images and on shifted sets, and `scod` with each foreign set by max p."""
    test, truth = answers["familiar"]["test"], sets["familiar"]["test"].labels
    wrong = test.classes != truth
    return {
        "test": quality(test, truth),
        "shift": {
            name: quality(part, sets["shift"][name].labels)
            for name, part in answers["shift"].items()
        },
        "scod": {
            name: scod(test.scores[RANKING], wrong, part.scores[RANKING])
            for name, part in answers["foreign"].items()
        },
    }


def gate_figures(
    levels: Levels, answers: Grouped[Answers], sets: Grouped[Dataset]
) -> dict[str, Any]:
    """What a policy does with test images, shifted and foreign sets, and `scod` by the joint score.

    Raises:
        models.conformal.CalibrationError: there are too few calibration images for the policy.
        training.certify.CertifyError: they do not prove what it asks for.
    """
    calibration, test = answers["familiar"]["calibration"], answers["familiar"]["test"]
    truth = sets["familiar"]["test"].labels
    policy = policy_of(levels, calibration, sets["familiar"]["calibration"].labels)
    calibrated = calibrate(FUSED, calibration)
    calibrated.check({"default": policy}, sets["familiar"]["test"].classes)
    judged: dict[str, tuple[Answers, Labels | None]] = {"test": (test, truth)}
    judged |= {name: (part, sets["shift"][name].labels) for name, part in answers["shift"].items()}
    judged |= {name: (part, None) for name, part in answers["foreign"].items()}
    joint = joint_score(calibration, test)
    wrong = test.classes != truth
    return {
        "policy": policy.model_dump(),
        "decisions": decisions(policy, calibrated, judged),
        "scod": {
            name: scod(joint, wrong, joint_score(calibration, part))
            for name, part in answers["foreign"].items()
        },
    }
