"""Evaluation: quality on the test set, the flag's false-alarm rate, and unfamiliar images.

Everything is computed from member logits, so that the posterior and its baselines are judged by the
same lines. Nothing here is fitted: unfamiliar sets are only reported on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.conformal import ConformalTest
from models.detectors import scores
from models.policy import Policy, reasons_to_abstain
from models.uncertainty import Prediction, softmax, summarise
from training import metrics

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]

ALPHAS = (0.05, 0.01, 0.001)


def quality(logits: Logits, labels: Labels) -> dict[str, float]:
    """Accuracy, NLL (nats), ECE over 15 bins and Brier score of member logits [n, M, K]."""
    prediction = summarise(logits)
    members = softmax(logits)
    return {
        "accuracy": metrics.accuracy(prediction.probabilities, labels),
        "member_accuracy": float((members.argmax(axis=2) == labels[:, None]).mean()),
        "nll": metrics.negative_log_likelihood(prediction.probabilities, labels),
        "ece": metrics.calibration_error(prediction.probabilities, labels),
        "brier": metrics.brier(prediction.probabilities, labels),
        "predictive_entropy": float(prediction.predictive_entropy.mean()),
        "mutual_information": float(prediction.mutual_information.mean()),
    }


def flag_rates(tests: Mapping[str, ConformalTest], logits: Logits) -> dict[str, dict[str, float]]:
    """Share of images flagged at each α, for each detector."""
    values = scores(summarise(logits))
    return {
        name: {str(alpha): float((test.p_values(values[name]) <= alpha).mean()) for alpha in ALPHAS}
        for name, test in tests.items()
    }


def separation(familiar: Logits, unfamiliar: Logits) -> dict[str, dict[str, float]]:
    """AUROC, FPR95 and FPR99 of each detector; FPR is the share of unfamiliar images accepted."""
    known, foreign = scores(summarise(familiar)), scores(summarise(unfamiliar))
    return {
        name: {
            "auroc": metrics.auroc(known[name], foreign[name]),
            "fpr95": metrics.missed_at(known[name], foreign[name], 0.95),
            "fpr99": metrics.missed_at(known[name], foreign[name], 0.99),
        }
        for name in known
    }


def gate(
    policy: Policy, test: ConformalTest, score: str, logits: Logits, labels: Labels | None
) -> dict[str, float | None]:
    """What a policy does: share accepted and, with labels, the error among the accepted."""
    prediction = summarise(logits)
    accepted = _accepted(policy, test, score, prediction)
    errors = None
    if labels is not None and accepted.any():
        wrong = prediction.probabilities.argmax(axis=1) != labels
        errors = float(wrong[accepted].mean())
    return {"accepted": float(accepted.mean()), "error_among_accepted": errors}


def _accepted(
    policy: Policy, test: ConformalTest, score: str, prediction: Prediction
) -> NDArray[np.bool_]:
    p_values = test.p_values(scores(prediction)[score])
    reasons = reasons_to_abstain(policy, prediction.probabilities, p_values)
    return np.array([not reason for reason in reasons])


def evaluate(
    tests: Mapping[str, ConformalTest],
    score: str,
    policies: Mapping[str, Policy],
    test: tuple[Logits, Labels],
    ood: Mapping[str, Logits],
    shift: Mapping[str, tuple[Logits, Labels]],
) -> dict[str, Any]:
    """All figures of one ensemble, ready for JSON.

    Args:
        tests: the conformal test of each detector.
        score: the detector that raises the flag.
        policies: named policies.
        test: member logits [n, M, K] and labels [n] of the test set.
        ood: member logits of unfamiliar sets.
        shift: member logits and labels of sets with the same classes, seen otherwise.
    """
    logits, labels = test

    def gates(values: Logits, truth: Labels | None) -> dict[str, Any]:
        return {
            name: gate(policy, tests[score], score, values, truth)
            for name, policy in policies.items()
        }

    return {
        "test": {
            **quality(logits, labels),
            "flag_rate": flag_rates(tests, logits),
            "policies": gates(logits, labels),
        },
        "ood": {
            name: {
                "separation": separation(logits, values),
                "flag_rate": flag_rates(tests, values),
                "policies": gates(values, None),
            }
            for name, values in ood.items()
        },
        "shift": {
            name: {
                **quality(values, truth),
                "flag_rate": flag_rates(tests, values),
                "policies": gates(values, truth),
            }
            for name, (values, truth) in shift.items()
        },
    }
