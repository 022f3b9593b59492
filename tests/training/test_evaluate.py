from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.detectors import ENSEMBLE
from models.policy import Policy
from training.calibrate import calibrate, stored
from training.evaluate import ALPHAS, Answers, evaluate, flag_rates, gate, quality, separation

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]
POLICY = Policy(alpha=0.01, min_probability=0.9)


def draw(seed: int, size: int, scale: float, members: int = 3) -> tuple[Logits, Labels]:
    """Logits of members that mostly agree on a label, the more so the greater `scale`."""
    randomness = np.random.default_rng(seed)
    labels = randomness.integers(0, 4, size)
    logits = randomness.normal(size=(size, members, 4))
    logits[np.arange(size), :, labels] += scale
    return logits.astype(np.float32), labels


def of(probabilities: list[list[list[float]]]) -> Logits:
    """Logits of member probabilities [n, M, K]."""
    return np.log(np.array(probabilities)).astype(np.float32)


def test_quality_by_hand() -> None:
    """The members contradict each other on the first image; the mean decides for class 0."""
    logits = of([[[0.9, 0.1], [0.3, 0.7]], [[0.2, 0.8], [0.4, 0.6]]])
    figures = quality(Answers.of(logits), np.array([0, 0]))
    assert figures["accuracy"] == 0.5
    assert figures["member_accuracy"] == 0.25
    assert figures["nll"] == pytest.approx(-(math.log(0.6) + math.log(0.3)) / 2, rel=1e-5)
    assert figures["brier"] == pytest.approx((2 * 0.4**2 + 2 * 0.7**2) / 2, rel=1e-5)
    assert figures["aurc"] == pytest.approx((1 + 1 / 2) / 2)
    assert figures["ece"] == pytest.approx((0.4 + -0.0 + 0.7) / 2, rel=1e-5)
    assert figures["predictive_entropy"] > figures["mutual_information"] > 0


def test_flag_rate_is_alpha_on_exchangeable_images() -> None:
    """Given the calibration set the rate is Beta; over both draws its standard error is known."""
    print("seeds 1, 2")
    size = 20_000
    tests = calibrate(Answers.of(draw(1, size, 2.0)[0]).scores)
    rates = flag_rates(tests, Answers.of(draw(2, size, 2.0)[0]))
    assert list(rates) == list(ENSEMBLE)
    for by_alpha in rates.values():
        for alpha in ALPHAS:
            error = math.sqrt(2 * alpha * (1 - alpha) / size)
            assert by_alpha[str(alpha)] == pytest.approx(alpha, abs=4.5 * error)


def test_separation_of_what_is_easy_and_of_what_is_the_same() -> None:
    familiar, same, foreign = (
        Answers.of(draw(seed, 2000, scale)[0]) for seed, scale in ((1, 9), (2, 9), (3, 0))
    )
    for figures in separation(familiar, foreign).values():
        assert figures["auroc"] > 0.99
        assert figures["fpr95"] <= figures["fpr99"] < 0.2
    for figures in separation(familiar, same).values():
        assert figures["auroc"] == pytest.approx(0.5, abs=0.04)
        assert figures["fpr95"] == pytest.approx(0.95, abs=0.03)


def test_gate_counts_errors_among_the_accepted_alone() -> None:
    policy = Policy(alpha=0.01, min_probability=0.8)
    answers = Answers.of(of([[[0.95, 0.05]], [[0.9, 0.1]], [[0.7, 0.3]], [[0.55, 0.45]]]))
    likely = np.ones(4)
    outcome = gate(policy, likely, answers, np.array([0, 1, 1, 1]))
    assert outcome == {"accepted": 0.5, "error_among_accepted": 0.5}
    assert gate(policy, likely, answers, None) == {"accepted": 0.5, "error_among_accepted": None}
    flagged = gate(policy, np.array([0.5, 0.01, 0.5, 0.5]), answers, np.array([0, 1, 1, 1]))
    assert flagged == {"accepted": 0.25, "error_among_accepted": 0.0}
    nothing = gate(policy, np.zeros(4), answers, np.array([0, 0, 0, 0]))
    assert nothing == {"accepted": 0.0, "error_among_accepted": None}


def test_gate_refuses_what_is_not_a_number() -> None:
    logits, labels = draw(1, 50, 9.0)
    test = calibrate(Answers.of(logits).scores)["mutual_information"]
    logits[:, 0, 0] = np.nan
    answers = Answers.of(logits)
    p_values = test.p_values(answers.scores["mutual_information"])
    assert gate(POLICY, p_values, answers, labels)["accepted"] == 0


def test_evaluate_has_a_figure_for_everything_and_is_json() -> None:
    calibration, test, foreign, shifted = (
        (Answers.of(logits), labels)
        for logits, labels in (
            draw(1, 300, 4.0),
            draw(2, 200, 4.0),
            draw(3, 100, 0.0),
            draw(4, 100, 2.0),
        )
    )
    policies = {
        "default": POLICY,
        "strict": Policy(alpha=0.05, min_probability=0.99),
        "energetic": Policy(alpha=0.05, min_probability=0.0, score="energy"),
    }
    results: dict[str, Any] = evaluate(
        calibrate(calibration[0].scores),
        "mutual_information",
        policies,
        test,
        {"foreign": foreign[0]},
        {"shifted": shifted},
    )
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert list(results) == ["test", "ood", "shift"]
    assert results["test"]["accuracy"] == quality(*test)["accuracy"]
    assert set(results["ood"]["foreign"]["separation"]) == set(ENSEMBLE)
    for part in (results["test"], results["ood"]["foreign"], results["shift"]["shifted"]):
        assert set(part["policies"]) == set(policies)
        assert set(part["flag_rate"]) == set(ENSEMBLE)
        assert part["policies"]["strict"]["accepted"] <= part["policies"]["default"]["accepted"]
    assert results["ood"]["foreign"]["policies"]["default"]["error_among_accepted"] is None
    flagged = results["test"]["flag_rate"]["energy"]["0.05"]
    assert results["test"]["policies"]["energetic"]["accepted"] == pytest.approx(1 - flagged)


def test_calibration_is_what_serving_computes() -> None:
    """Stored scores of the calibration images, each with the p-value of its rank."""
    logits, _ = draw(1, 60, 2.0)
    tests = calibrate(Answers.of(logits).scores)
    for name, values in stored(tests).items():
        test = tests[name]
        ranks = (np.arange(60, 0, -1) + 1) / 61
        assert np.all(np.diff(values) >= 0)
        assert test.p_values(values) == pytest.approx(ranks)
