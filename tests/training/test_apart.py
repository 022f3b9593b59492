from __future__ import annotations

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from models.calibration import Calibration
from models.policy import Policy
from training.apart import ambiguity, place, points, shares
from training.evaluate import Answers

SURE, HALF = (20.0, -20.0, -20.0), (10.0, 10.0, -20.0)
SCORE = "energy"


def answers(count: int, *members: tuple[float, ...]) -> Answers:
    """The same member logits for every image."""
    return Answers.of(np.tile(np.array(members, np.float32), (count, 1, 1)))


PLAIN = answers(5, SURE, SURE)
AMBIGUOUS = answers(4, HALF, HALF)
FOREIGN = answers(3, SURE, SURE[::-1])
PAIRS: NDArray[np.int64] = np.array([[0, 1], [1, 0], [0, 1], [0, 1]])


def test_each_measure_sees_its_own_kind() -> None:
    """Plain: no entropy. Ambiguous: all of it expected. Foreign: all of it disagreement."""
    figures = ambiguity(PLAIN, (AMBIGUOUS, PAIRS), {"foreign": FOREIGN}, SCORE)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["images"] == 4
    assert figures["both_labels"] == pytest.approx(1)
    assert figures["two_most_likely"] == 1
    medians = figures["medians"]
    assert medians["ambiguous"]["expected_entropy"] == pytest.approx(math.log(2))
    assert medians["ambiguous"]["mutual_information_share"] == pytest.approx(0, abs=1e-9)
    assert medians["foreign"]["mutual_information"] == pytest.approx(math.log(2))
    assert medians["foreign"]["mutual_information_share"] == pytest.approx(1)
    assert medians["test"]["expected_entropy"] == pytest.approx(0, abs=1e-9)
    assert figures["auroc_over_test"]["expected_entropy"] == 1
    over_ambiguous = figures["auroc_over_ambiguous"]["foreign"]
    assert over_ambiguous["expected_entropy"] == 0
    assert over_ambiguous["mutual_information"] == 1
    assert over_ambiguous["mutual_information_share"] == 1
    assert over_ambiguous[SCORE] == 0  # −20 for the sure, −10 − ln 2 for the ambiguous


def test_labels_that_the_ensemble_does_not_name() -> None:
    wrong = np.array([[0, 1], [0, 2], [1, 2], [2, 1]])
    figures = ambiguity(PLAIN, (AMBIGUOUS, wrong), {}, SCORE)
    assert figures["both_labels"] == pytest.approx((1 + 3 * 0.5) / 4)
    assert figures["two_most_likely"] == 0.25
    assert figures["auroc_over_ambiguous"] == {}


def test_no_entropy_has_no_share() -> None:
    certain = answers(2, (1000.0, 0.0, 0.0))
    figures = ambiguity(certain, (certain, PAIRS[:2]), {}, SCORE)
    assert figures["medians"]["test"]["mutual_information_share"] == 0
    assert figures["auroc_over_test"]["mutual_information_share"] == 0.5


POLICY = Policy(alpha=0.3, min_probability=0.9)
CALIBRATION = Calibration.fit(SCORE, {SCORE: np.array([-25.0, -15.0, -5.0])}, None)


def test_points_and_shares_by_hand() -> None:
    """Energies −20, −10 − ln 2, 0 − ln 2 and 0: of three calibration images the last lies at −5."""
    logits = np.array([SURE, HALF, (0.0, 0.0, -20.0), (0.0, -20.0, -20.0)], np.float32)
    images = Answers.of(logits[:, None])
    placed = points(CALIBRATION, POLICY, images)
    assert placed[0] == pytest.approx([0, math.log(2), math.log(2), 0], abs=1e-6)
    assert placed[1].tolist() == images.scores[SCORE].tolist()
    assert placed[2].tolist() == [0, 1, 2, 2]
    assert shares(placed) == {"accept": 0.25, "uncertain": 0.25, "ood": 0.5}


def test_points_are_those_of_the_policys_own_score_and_level() -> None:
    scores = {SCORE: np.zeros(3), "max_logit": np.full(3, -30.0)}
    calibration = Calibration.fit(SCORE, scores, None)
    policy = Policy(alpha=0.3, min_probability=0.9, score="max_logit")
    assert points(calibration, policy, PLAIN)[1:].tolist() == [[-20.0] * 5, [2.0] * 5]
    confident = policy.model_copy(update={"alpha_confidence": 0.9})  # more than 3 images can give
    assert points(calibration, confident, PLAIN)[2].tolist() == [0.0] * 5


def test_place_parts_right_from_wrong_and_leaves_out_what_is_empty() -> None:
    labels = np.array([0, 0, 1, 0, 2])
    placed = place(
        CALIBRATION, POLICY, (PLAIN, labels), {"ambiguous": AMBIGUOUS, "foreign": FOREIGN}
    )
    assert {name: values.shape[1] for name, values in placed.items()} == {
        "test, right": 3,
        "test, wrong": 2,
        "ambiguous": 4,
        "foreign": 3,
    }
    assert shares(placed["test, right"])["accept"] == 1
    assert shares(placed["ambiguous"])["uncertain"] == 1
    all_right = place(CALIBRATION, POLICY, (PLAIN, np.zeros(5, np.int64)), {"strange": FOREIGN})
    assert list(all_right) == ["test, right", "strange"]
