from __future__ import annotations

from itertools import compress, product
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats

from models.detectors import DETECTORS, ENSEMBLE, FITTED, FUSED, Detectors, ensemble_scores
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


def judged(count: int) -> tuple[Prediction, np.ndarray, np.ndarray]:
    """Predictions, features and grey values of images that mean nothing."""
    randomness = np.random.default_rng(1)
    logits = randomness.normal(0, 2, (count, 5, 3))
    pixels = randomness.random((count, 9, 7), dtype=np.float32)
    features = randomness.normal(size=(count, 2, 5)).astype(np.float32)
    return summarise(logits), features, pixels


def test_detectors_score_the_image_against_the_predicted_class(detectors: Detectors) -> None:
    prediction, features, pixels = judged(12)
    scores = detectors.scores(prediction, features, pixels)
    classes = prediction.probabilities.argmax(axis=1)
    assert list(scores) == list(DETECTORS)
    expected = {
        **ensemble_scores(prediction),
        "shape": detectors.shape.distances(shape_statistics(pixels), classes),
        "strokes": detectors.strokes.residuals(oriented_gradients(pixels), classes),
        "feature_subspaces": detectors.feature_subspaces.scores(features, classes),
        "feature_neighbours": detectors.feature_neighbours.scores(features, classes),
        "relative_mahalanobis": detectors.relative_mahalanobis.scores(features),
        FUSED: fuse(detectors.surprises, scores),
    }
    for name in DETECTORS:
        assert scores[name].tolist() == expected[name].tolist()
    assert np.isfinite(np.stack(list(scores.values()))).all()


def test_what_a_score_needs_is_itself_and_what_it_fuses(detectors: Detectors) -> None:
    for name in (*ENSEMBLE, *FITTED):
        assert detectors.needed(name) == {name}
    assert detectors.needed(FUSED) == {"predictive_entropy", "shape", "strokes", FUSED}


def test_scores_that_are_asked_are_those_of_all_to_the_bit(detectors: Detectors) -> None:
    """For every set of detectors that has what each of them needs, and for those alone."""
    several, one = judged(5), judged(1)
    whole, single = detectors.scores(*several), detectors.scores(*one)
    for chosen in product((False, True), repeat=len(DETECTORS)):
        names = set(compress(DETECTORS, chosen))
        if FUSED in names and not names >= detectors.needed(FUSED):
            continue
        for given, expected in ((several, whole), (one, single)):
            scores = detectors.scores(*given, names)
            assert list(scores) == [name for name in DETECTORS if name in names]
            assert all(scores[name].tobytes() == expected[name].tobytes() for name in names)


def test_those_that_are_not_asked_cost_nothing(
    detectors: Detectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.detectors.shape_statistics", None)
    monkeypatch.setattr("models.detectors.oriented_gradients", None)
    asked = set(DETECTORS) - {"shape", "strokes", FUSED}
    assert set(detectors.scores(*judged(5), asked)) == asked


def test_single_scores_are_beside_the_classes_that_are_given(detectors: Detectors) -> None:
    prediction, features, pixels = judged(12)
    fused = detectors.scores(prediction, features, pixels)
    other = (prediction.probabilities.argmax(axis=1) + 1) % 3
    scores = detectors.single_scores(prediction, features, pixels, other)
    assert FUSED not in scores
    changed = {name for name in scores if (scores[name] != fused[name]).all()}
    assert changed == {"shape", "strokes", "feature_subspaces", "feature_neighbours"}


def test_every_way_through_memory_or_a_file_gives_the_same_scores(
    detectors: Detectors, tmp_path: Path
) -> None:
    fused = tuple(detectors.surprises)
    arrays = detectors.arrays()
    assert tuple(arrays) == Detectors.names(fused)
    np.savez(tmp_path / "arrays.npz", allow_pickle=False, **arrays)
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as archive:
        again = Detectors.from_arrays(dict(archive), fused)
    before, after = detectors.scores(*judged(30)), again.scores(*judged(30))
    for name in DETECTORS:
        assert np.array_equal(after[name], before[name])
    assert again.feature_shape == detectors.feature_shape == (2, 5)


def test_references_take_two_bytes_a_number(detectors: Detectors) -> None:
    assert detectors.arrays()["feature_neighbours.references"].dtype == np.float16


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("shape.mean", np.full((3, 20), np.nan), "must hold finite real numbers"),
        ("strokes.mean", np.zeros((3, 196), int), "must hold finite real numbers"),
        ("relative_mahalanobis.ratios", np.full((2, 2), np.inf), "must hold finite real"),
        ("feature_neighbours.bounds", np.zeros((3, 2)), "must hold whole numbers"),
        ("shape.whitening", np.zeros((3, 20, 19)), "does not fit"),
        ("strokes.basis", np.zeros((3, 2, 195)), "does not fit"),
        ("strokes.basis", np.zeros((3, 196)), "does not fit"),
        ("strokes.basis", np.zeros((3, 0, 196)), "does not fit"),
        ("strokes.mean", np.zeros(()), "does not fit"),
        ("feature_subspaces.mean", np.zeros((2, 2, 5)), "does not fit"),
        ("feature_subspaces.basis", np.zeros((1, 3, 2, 5)), "does not fit"),
        ("feature_neighbours.directions", np.zeros((10, 5)), "5 is not m F"),
        ("feature_neighbours.references", np.zeros((60, 9)), "does not fit"),
        ("feature_neighbours.bounds", np.zeros((3, 3), int), "does not fit"),
        ("feature_neighbours.bounds", np.array([[0, 1], [1, 1], [1, 9]]), "no references"),
        ("feature_neighbours.bounds", np.array([[0, 1], [-1, 1], [1, 9]]), "no references"),
        ("feature_neighbours.bounds", np.array([[0, 1], [1, 2], [2, 61]]), "no references"),
        ("relative_mahalanobis.mean", np.zeros((2, 6)), "does not fit"),
        ("relative_mahalanobis.discriminants", np.zeros((2, 1, 5)), "does not fit"),
        ("relative_mahalanobis.centres", np.zeros((2, 3, 1)), "does not fit"),
        ("relative_mahalanobis.ratios", np.zeros((2, 1)), "does not fit"),
        ("surprise.shape", np.zeros((3, 4)), "must be two rising rows"),
        ("surprise.shape", np.array([[1.0, 0.0], [0.0, 1.0]]), "must be two rising rows"),
    ],
)
def test_stored_arrays_that_do_not_fit(
    detectors: Detectors, name: str, value: np.ndarray, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        Detectors.from_arrays({**detectors.arrays(), name: value}, tuple(detectors.surprises))
    assert str(caught.value).startswith(name.split(".")[0])
