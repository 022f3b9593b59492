from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.calibration import Calibration
from models.conformal import CalibrationError, conditional_level
from models.detectors import ENSEMBLE, ensemble_scores
from models.manifest import SetLevels
from models.outputs import Outputs
from models.policy import Policy, reasons_to_abstain
from models.prediction_sets import PredictionSets, lac
from models.settling import serve
from models.uncertainty import Array, Prediction, softmax, summarise
from training.calibrate import calibrate, fit_sets, stored
from training.evaluate import (
    ALPHAS,
    Answers,
    Decisions,
    class_flag_rates,
    evaluate,
    flag_rates,
    gate,
    quality,
    separation,
    set_figures,
)

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]
POLICY = Policy(alpha=0.01, min_probability=0.9)
EXACT = Policy(alpha=0.01, min_probability=0.9, members="exact")
CONFIDENT = Policy(alpha=0.01, min_probability=0.9, members="confident", settled_at=0.95)


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
    assert figures["augrc"] == pytest.approx(3 / 8)
    assert figures["coverage_at_0.001"] == figures["coverage_at_0.01"] == 0
    assert figures["ece"] == pytest.approx((0.4 + -0.0 + 0.7) / 2, rel=1e-5)
    assert figures["predictive_entropy"] > figures["mutual_information"] > 0


def test_flag_rate_is_alpha_on_exchangeable_images() -> None:
    """Given the calibration set the rate is Beta; over both draws its standard error is known."""
    print("seeds 1, 2")
    size = 20_000
    tests = calibrate("energy", Answers.of(draw(1, size, 2.0)[0])).tests
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
    likely, asked = np.ones(4), np.array([4, 4, 8, 12])

    def decided(p_values: NDArray[np.float64]) -> Decisions:
        reasons = reasons_to_abstain(policy, answers.prediction.probabilities, p_values, 0.01)
        return Decisions(reasons, answers.classes, asked)

    outcome = gate(decided(likely), np.array([0, 1, 1, 1]))
    assert outcome == {"accepted": 0.5, "error_among_accepted": 0.5, "members": 7.0}
    assert gate(decided(likely), None) == {
        "accepted": 0.5,
        "error_among_accepted": None,
        "members": 7.0,
    }
    flagged = gate(decided(np.array([0.5, 0.01, 0.5, 0.5])), np.array([0, 1, 1, 1]))
    assert flagged == {"accepted": 0.25, "error_among_accepted": 0.0, "members": 7.0}
    nothing = gate(decided(np.zeros(4)), np.array([0, 0, 0, 0]))
    assert nothing == {"accepted": 0.0, "error_among_accepted": None, "members": 7.0}
    others = Decisions(decided(likely).reasons, 1 - answers.classes, asked)
    assert gate(others, np.array([0, 1, 1, 1]))["error_among_accepted"] == 0.5
    assert gate(others, np.array([1, 1, 0, 0]))["error_among_accepted"] == 0.0


def test_gate_refuses_what_is_not_a_number() -> None:
    logits, labels = draw(1, 50, 9.0)
    calibration = calibrate("mutual_information", Answers.of(logits))
    logits[:, 0, 0] = np.nan
    answers = Answers.of(logits)
    for policy in (POLICY, EXACT, CONFIDENT):
        decisions = answers.decide(calibration, policy)
        assert gate(decisions, labels)["accepted"] == 0
        assert set(decisions.reasons) == {("uncertain",)}
        assert set(decisions.members) == {3}


def grouped(logits: Logits, group: int) -> Answers:
    """Scores of the first group, as `Answers.detected` has them."""
    totals = softmax(logits).cumsum(axis=1)[:, group - 1 :: group]
    scores = ensemble_scores(summarise(logits[:, :group]))
    return replace(Answers.of(logits), scores=scores, totals=totals, group=group)


class Witness:
    """Detectors that tell the mutual information of what they are shown."""

    def scores(self, prediction: Prediction, features: Logits, pixels: Logits) -> dict[str, Array]:
        return {"seen": prediction.mutual_information + features.mean(axis=(1, 2)) + pixels}


def test_what_detectors_see_is_the_first_group() -> None:
    """Probabilities are of all members, scores and totals by group."""
    randomness = np.random.default_rng(1)
    logits = randomness.normal(0, 2, (7, 6, 3)).astype(np.float32)
    features = randomness.normal(size=(7, 2, 5)).astype(np.float32)
    pixels = randomness.random(7, dtype=np.float32)
    answers = Answers.detected(Outputs(logits, features), pixels, Witness())  # type: ignore[arg-type]
    assert answers.group == 2
    assert np.array_equal(answers.prediction.probabilities, summarise(logits).probabilities)
    expected = Witness().scores(summarise(logits[:, :2]), features, pixels)
    assert answers.scores["seen"].tolist() == expected["seen"].tolist()
    members = softmax(logits)
    assert answers.totals.shape == (7, 3, 3)
    for step in range(3):
        total = members[:, : 2 * (step + 1)].sum(axis=1)
        assert answers.totals[:, step] == pytest.approx(total, abs=1e-12)
    assert answers.first == pytest.approx(members[:, :2].mean(axis=1))
    assert (answers.choices == logits.argmax(axis=2)).all()


@pytest.mark.parametrize("conditional_on", [None, "class"])
def test_decisions_are_those_of_the_served_members_and_of_the_first_groups_flag(
    conditional_on: str | None,
) -> None:
    """The class within which an image is tested is that of the first group, not of all members."""
    known, new = grouped(draw(1, 400, 2.0, 8)[0], 2), grouped(draw(2, 400, 2.0, 8)[0], 2)
    calibration = calibrate("energy", known)
    seen_first = new.first.argmax(axis=1)
    assert (seen_first != new.classes).any()
    for base in (POLICY, EXACT, CONFIDENT):
        policy = base.model_copy(update={"alpha": 0.1, "conditional_on": conditional_on})
        p_values = (
            calibration.class_tests["energy"].p_values(new.scores["energy"], seen_first)
            if conditional_on
            else calibration.tests["energy"].p_values(new.scores["energy"])
        )
        served = serve(policy, new.totals, 2, p_values <= 0.1)
        decisions = new.decide(calibration, policy)
        assert decisions.reasons == reasons_to_abstain(policy, served.probabilities, p_values, 0.1)
        assert decisions.classes.tolist() == served.probabilities.argmax(axis=1).tolist()
        assert decisions.members.tolist() == served.members.tolist()
        assert decisions.accepted.tolist() == [not why for why in decisions.reasons]
        flagged = p_values <= 0.1
        assert flagged.any()
        assert set(decisions.members[flagged]) == {8 if base is POLICY else 2}
    everyone, exact = (new.decide(calibration, policy) for policy in (POLICY, EXACT))
    assert exact.accepted.tolist() == everyone.accepted.tolist()
    assert (exact.classes == everyone.classes)[exact.accepted].all()
    assert exact.members.mean() < everyone.members.mean()


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
        "by_class": Policy(alpha=0.05, min_probability=0.0, conditional_on="class"),
        "sure": Policy(alpha=0.05, min_probability=0.0, alpha_confidence=0.9),
    }
    found = calibrate("mutual_information", calibration[0])
    sets = fit_sets(SetLevels(score="aps", coverage=0.99), *calibration)
    assert sets is not None
    results: dict[str, Any] = evaluate(
        found,
        sets.fitted,
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
    scores = test[0].scores["mutual_information"]
    expected = {
        "by_class": found.class_tests["mutual_information"].p_values(scores, test[0].classes)
        > 0.05,
        "sure": found.tests["mutual_information"].p_values(scores)
        > conditional_level(0.05, 300, 0.9),
    }
    for name, accepted in expected.items():
        assert results["test"]["policies"][name]["accepted"] == accepted.mean()
    assert results["test"]["class_flag_rate"] == class_flag_rates(found, test[0])
    for part, (answers, labels) in (
        (results["test"], test),
        (results["shift"]["shifted"], shifted),
    ):
        assert part["prediction_sets"] == set_figures(sets.fitted, answers, labels)
    assert "prediction_sets" not in evaluate(found, None, policies, test, {}, {})["test"]


def test_flag_rate_by_class_by_hand() -> None:
    """Class 1 scores higher: over all images it is flagged alone, within the class as class 0 is.

    No image is taken for class 2.
    """
    classes = np.repeat([0, 1], 19)
    known = Answers.of(of([[[0.5 + n / 100, 0.3 - n / 100, 0.2]] for n in range(19)] * 2))
    scores = {"energy": np.arange(38.0)}
    calibration = Calibration.fit("energy", scores, classes)
    new = replace(known, scores={"energy": np.array([18.5] * 19 + [37.5] * 19)})
    probabilities = np.eye(3)[classes]
    new = replace(new, totals=probabilities[:, None], group=1)
    rates = class_flag_rates(calibration, new)
    assert rates["marginal"]["0.05"] == {"0": 0.0, "1": 1.0, "2": None}
    assert rates["class"]["0.05"] == {"0": 1.0, "1": 1.0, "2": None}
    assert rates["class"]["0.01"] == {"0": 0.0, "1": 0.0, "2": None}


def test_set_figures_by_hand() -> None:
    sets = PredictionSets(lac, 0.9, 9, 0.75)
    answers = Answers.of(of([[[0.9, 0.1]], [[0.7, 0.3]], [[0.8, 0.2]], [[0.5, 0.5]]]))
    figures = set_figures(sets, answers, np.array([0, 1, 1, 0]))
    assert figures == {"coverage": 0.75, "mean_size": 6 / 4}


def test_sets_are_fitted_to_the_coverage_or_refused() -> None:
    logits, labels = draw(1, 99, 2.0)
    answers = Answers.of(logits)
    assert fit_sets(None, answers, labels) is None
    spec = fit_sets(SetLevels(score="lac", coverage=0.99), answers, labels)
    assert spec is not None
    assert (spec.score, spec.coverage, spec.calibration_size) == ("lac", 0.99, 99)
    own = 1 - answers.prediction.probabilities[np.arange(99), labels]
    assert spec.threshold == own.max()
    fewer = Answers.of(logits[1:])
    with pytest.raises(CalibrationError, match=r"98 .* coverage of 0\.99: 99 are needed$"):
        fit_sets(SetLevels(score="lac", coverage=0.99), fewer, labels[1:])


def test_what_is_stored_is_what_serving_reads() -> None:
    """Scores in the order of the images, whose p-values are those of the fitted tests."""
    logits, _ = draw(1, 60, 2.0)
    answers = Answers.of(logits)
    arrays = stored(answers)
    assert arrays.keys() == {*ENSEMBLE, "classes"}
    assert arrays["classes"].tolist() == answers.prediction.probabilities.argmax(axis=1).tolist()
    fitted = calibrate("energy", answers)
    kept = Calibration.fit(
        "energy", {name: arrays[name].astype(float) for name in ENSEMBLE}, answers.classes
    )
    for name in ENSEMBLE:
        assert arrays[name].tolist() == answers.scores[name].tolist()
        assert kept.tests[name].scores.tolist() == fitted.tests[name].scores.tolist()
        p_values = fitted.tests[name].p_values(np.sort(answers.scores[name]))
        assert p_values == pytest.approx((np.arange(60, 0, -1) + 1) / 61)
