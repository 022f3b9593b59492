from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from models.detectors import DETECTORS, ENSEMBLE, FUSED, Detectors, ensemble_scores
from models.fusion import fuse
from models.orientation import oriented_gradients
from models.shape import shape_statistics
from models.uncertainty import Prediction, summarise


def test_each_score_of_the_ensemble_is_what_its_name_says() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (20, 5, 4))
    members = special.softmax(logits, axis=2)
    mean = members.mean(axis=1)
    total, expected = stats.entropy(mean, axis=1), stats.entropy(members, axis=2).mean(axis=1)
    values = ensemble_scores(summarise(logits))
    assert list(values) == list(ENSEMBLE)
    assert values["predictive_entropy"] == pytest.approx(total)
    assert values["mutual_information"] == pytest.approx(total - expected)
    assert values["max_probability"] == pytest.approx(1 - mean.max(axis=1))
    assert values["max_logit"] == pytest.approx(-logits.mean(axis=1).max(axis=1))
    assert values["energy"] == pytest.approx(-special.logsumexp(logits, axis=2).mean(axis=1))


@pytest.mark.parametrize("name", ENSEMBLE)
def test_score_rises_from_agreement_to_contradiction(name: str) -> None:
    sure = [[9.0, 0.0, 0.0]] * 3
    contradictory = [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]
    agreed, doubtful = ensemble_scores(summarise(np.array([sure, contradictory])))[name]
    assert agreed < doubtful - 0.1


@pytest.mark.parametrize("name", ENSEMBLE)
def test_score_of_what_is_not_a_number_is_none_either(name: str) -> None:
    values = ensemble_scores(summarise(np.array([[[np.nan, 0.0]], [[1.0, 0.0]]])))[name]
    assert np.isnan(values).tolist() == [True, False]


def judged(count: int) -> tuple[Prediction, np.ndarray]:
    randomness = np.random.default_rng(1)
    logits = randomness.normal(0, 2, (count, 5, 3))
    return summarise(logits), randomness.random((count, 9, 7), dtype=np.float32)


def test_detectors_score_the_image_against_the_predicted_class(detectors: Detectors) -> None:
    prediction, pixels = judged(12)
    scores = detectors.scores(prediction, pixels)
    classes = prediction.probabilities.argmax(axis=1)
    assert list(scores) == list(DETECTORS)
    shape, strokes = shape_statistics(pixels), oriented_gradients(pixels)
    assert scores["shape"].tolist() == detectors.shape.distances(shape, classes).tolist()
    assert scores["strokes"].tolist() == detectors.strokes.residuals(strokes, classes).tolist()
    assert scores[FUSED].tolist() == fuse(detectors.surprises, scores).tolist()
    assert np.isfinite(np.stack(list(scores.values()))).all()


def test_detectors_are_stored_and_read(detectors: Detectors) -> None:
    fused = tuple(detectors.surprises)
    arrays = detectors.arrays()
    assert tuple(arrays) == Detectors.names(fused)
    again = Detectors.from_arrays(arrays, fused)
    prediction, pixels = judged(30)
    before, after = detectors.scores(prediction, pixels), again.scores(prediction, pixels)
    for name in DETECTORS:
        assert before[name].tolist() == after[name].tolist()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("shape.mean", np.full((3, 20), np.nan), "shape.mean must hold finite real numbers"),
        ("strokes.mean", np.zeros((3, 196), int), "strokes.mean must hold finite real numbers"),
        ("shape.whitening", np.zeros((3, 20, 19)), "shape.whitening does not fit"),
        ("strokes.basis", np.zeros((3, 2, 195)), "strokes.basis does not fit"),
        ("strokes.basis", np.zeros((3, 196)), "strokes.basis does not fit"),
        ("strokes.basis", np.zeros((3, 0, 196)), "strokes.basis does not fit"),
        ("surprise.shape", np.zeros((3, 4)), "surprise.shape must be two rising rows"),
        ("surprise.shape", np.array([[1.0, 0.0], [0.0, 1.0]]), "surprise.shape must be two"),
    ],
)
def test_stored_arrays_that_do_not_fit(
    detectors: Detectors, name: str, value: np.ndarray, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        Detectors.from_arrays({**detectors.arrays(), name: value}, tuple(detectors.surprises))
