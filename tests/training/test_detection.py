from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from numpy.typing import NDArray

from models.density import ClassGaussians, ClassSubspaces
from models.detectors import DETECTORS, ENSEMBLE, FUSED, Detectors
from models.features import FeatureNeighbours, FeatureSubspaces, RelativeMahalanobis
from models.fusion import Surprise, fuse
from models.orientation import oriented_gradients
from models.outputs import Outputs
from models.preprocessing import InputSpec, grey, prepare
from models.shape import shape_statistics
from models.uncertainty import summarise
from training import data, detection
from training.data import Dataset
from training.outliers import spoilt

Floats = NDArray[np.float32]

SPEC = InputSpec(channels=1, height=8, width=8, polarity="light-on-dark", mean=(0.3,), std=(0.4,))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits", "train").select(np.arange(600))


class Templates:
    """Members that compare an image with the mean of each class, on scales of their own.

    The features are the distances, a little of a different one more for each member.
    """

    def __init__(self, digits: Dataset) -> None:
        images, _ = prepare(digits.images, SPEC)
        self.means = np.stack([images[digits.labels == label].mean(axis=0) for label in range(10)])

    def __call__(self, images: Floats) -> Outputs:
        distance = np.square(images[:, None] - self.means).sum(axis=(2, 3, 4))[:, None]
        scales = np.array([0.1, 0.2, 0.4], np.float32)[:, None]
        return Outputs(-distance * scales, distance * scales + np.eye(3, 10, dtype=np.float32))


class Knowing:
    """One logit says all, and nothing else does.

    Of two members the first is always sure of a class, the second of none at all: no entropy
    differs from image to image. The energy is noise. The mean logit of the class is high for the
    images that are known, and for no other.
    """

    def __init__(self, digits: Dataset) -> None:
        images, _ = prepare(digits.images, SPEC)
        self.known = {image.tobytes() for image in images}
        self.templates = Templates(digits)
        self.randomness = np.random.default_rng(0)

    def __call__(self, images: Floats) -> Outputs:
        logits = np.zeros((len(images), 2, 10), np.float32)
        outputs = self.templates(images)
        labels = outputs.logits.mean(axis=1).argmax(axis=1)
        for image, label, (sure, unsure) in zip(images, labels, logits, strict=True):
            level = self.randomness.uniform(30, 31) - 20 * (image.tobytes() not in self.known)
            noise = self.randomness.uniform(5_000, 50_000)
            sure[label], unsure[label] = level + noise, level - noise
        return Outputs(logits, outputs.features)


@pytest.fixture(scope="module")
def found(digits: Dataset) -> detection.Detection:
    return detection.fit(digits, SPEC, Templates(digits), seed=1)


def test_one_score_of_the_ensemble_is_fused_with_shape_or_strokes_or_both(
    digits: Dataset, found: detection.Detection
) -> None:
    averages = {name: np.mean(list(misses.values())) for name, misses in found.misses.items()}
    chosen = " + ".join(found.detectors.surprises)
    assert chosen == min(averages, key=lambda name: averages[name])
    others = ("shape + strokes", "shape", "strokes")
    assert list(averages) == [f"{first} + {other}" for first in ENSEMBLE for other in others]
    families = [*spoilt(digits.images[:2], np.array([0, 1]), seed=1), "misnamed"]
    for misses in found.misses.values():
        assert list(misses) == families
        assert all(0 <= share <= 1 for share in misses.values())
    assert len(set(averages.values())) > 1


def test_misses_are_counted_on_spoilt_training_images(
    digits: Dataset, found: detection.Detection
) -> None:
    """As counted by who has only the detectors: all 600 images are ranked, and all are spoilt.

    An image is misnamed if its most likely class has no logit to speak of.
    """
    ensemble = Templates(digits)

    def scores(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        prepared, _ = prepare(images, SPEC)
        outputs, pixels = ensemble(prepared), grey(prepared, SPEC)
        prediction = summarise(outputs.logits)
        return found.detectors.scores(prediction, outputs.features, pixels)[FUSED]

    def misnamed(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        prepared, _ = prepare(images, SPEC)
        pixels, outputs = grey(prepared, SPEC), ensemble(prepared)
        prediction = summarise(outputs.logits)
        scores = found.detectors.scores(prediction, outputs.features, pixels)
        probabilities = prediction.probabilities.copy()
        np.put_along_axis(probabilities, probabilities.argmax(axis=1)[:, None], 0, axis=1)
        second = probabilities.argmax(axis=1)
        scores["shape"] = found.detectors.shape.distances(shape_statistics(pixels), second)
        scores["strokes"] = found.detectors.strokes.residuals(oriented_gradients(pixels), second)
        return fuse(found.detectors.surprises, scores)

    order = np.random.default_rng(1).permutation(600)
    familiar = np.quantile(scores(digits.images), [0.95, 0.99])
    families = spoilt(digits.images[order], digits.labels[order], seed=1)
    expected = {
        family: np.mean([(scores(images) <= level).mean() for level in familiar])
        for family, images in families.items()
    }
    other = misnamed(digits.images)
    expected["misnamed"] = np.mean([(other <= level).mean() for level in familiar])
    assert found.misses[" + ".join(found.detectors.surprises)] == pytest.approx(expected)


def test_distances_are_fitted_on_grey_training_images_of_their_true_classes(
    digits: Dataset, found: detection.Detection
) -> None:
    pixels = digits.images[..., 0] / np.float32(255)
    shape = ClassGaussians.fit(shape_statistics(pixels), digits.labels, 10)
    assert found.detectors.shape.mean == pytest.approx(shape.mean, abs=1e-5)
    rank = 600 // 10 // 2
    strokes = ClassSubspaces.fit(oriented_gradients(pixels), digits.labels, 10, rank)
    assert found.detectors.strokes.basis.shape == (10, rank, 196)
    assert found.detectors.strokes.mean == pytest.approx(strokes.mean, abs=1e-4)


def test_features_are_those_of_some_training_images_and_of_their_true_classes(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of a random order, which are other images than those that are ranked."""
    monkeypatch.setattr(detection, "REFERENCES", 200)
    detectors = detection.fit(digits, SPEC, Templates(digits), seed=1).detectors
    known = digits.select(np.random.default_rng(1).permutation(600)[-200:])
    features = Templates(digits)(prepare(known.images, SPEC)[0]).features
    subspaces = FeatureSubspaces.fit(features, known.labels, 10, rank=10)
    assert np.array_equal(detectors.feature_subspaces.basis, subspaces.basis)
    neighbours = FeatureNeighbours.fit(features, known.labels, 10)
    assert np.array_equal(detectors.feature_neighbours.references, neighbours.references)
    relative = RelativeMahalanobis.fit(features, known.labels, 10)
    assert np.array_equal(detectors.relative_mahalanobis.discriminants, relative.discriminants)
    assert detectors.feature_shape == (3, 10)


def test_features_are_scored_and_never_fused(found: detection.Detection) -> None:
    named = {name for names in found.misses for name in names.split(" + ")}
    assert named == {*ENSEMBLE, "shape", "strokes"}


def test_same_seed_gives_the_same_detectors(digits: Dataset, found: detection.Detection) -> None:
    again = detection.fit(digits, SPEC, Templates(digits), seed=1)
    other = detection.fit(digits, SPEC, Templates(digits), seed=2)
    assert again.misses == found.misses != other.misses
    arrays = found.detectors.arrays()
    for name, values in again.detectors.arrays().items():
        assert np.array_equal(values, arrays[name])


def test_score_that_alone_knows_strangers_is_chosen(digits: Dataset) -> None:
    chosen = detection.fit(digits, SPEC, Knowing(digits), seed=1)
    assert next(iter(chosen.detectors.surprises)) == "max_logit"
    for name, misses in chosen.misses.items():
        spoilt_ones = [share for family, share in misses.items() if family != "misnamed"]
        assert name.startswith("max_logit") == (max(spoilt_ones) == 0)


def test_least_mean_over_all_families_is_chosen(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {"predictive_entropy": (0.1, 0.9, 0.5), "energy": (0.3, 0.3, 0.6)}

    def missed(surprises: dict[str, Surprise], *_: object) -> dict[str, float]:
        first, *others = surprises
        found = shares.get(first, (0.5, 0.5, 0.5)) if others == ["strokes"] else (0.9, 0.4, 0.2)
        return dict(zip("abc", found, strict=True))

    monkeypatch.setattr(detection, "missed", missed)
    chosen = detection.fit(digits, SPEC, Templates(digits), seed=1)
    assert list(chosen.detectors.surprises) == ["energy", "strokes"]
    assert chosen.misses["predictive_entropy + strokes"] == {"a": 0.1, "b": 0.9, "c": 0.5}


def test_detectors_of_few_images_are_stored_and_read(digits: Dataset) -> None:
    """With a single image of most classes there is still a direction."""
    few = digits.select(np.arange(12))
    detectors = detection.fit(few, SPEC, Templates(digits), seed=1).detectors
    again = Detectors.from_arrays(detectors.arrays(), tuple(detectors.surprises))
    assert again.strokes.basis.shape == (10, 1, 196)
    assert again.feature_subspaces.basis.shape == (3, 10, 1, 10)


def test_missed_by_hand() -> None:
    """Of lengths 5 i the thresholds are 5 · 95, which two of five pass, and 5 · 99, which four."""
    identity = Surprise(np.array([0.0, 1_000.0]), np.array([0.0, 1_000.0]))
    surprises = {"a": identity, "b": identity}
    lengths = np.arange(101.0)
    outliers = np.array([94.0, 95.0, 96.0, 99.0, 100.0])
    found = detection.missed(
        surprises,
        {"a": 3 * lengths, "b": 4 * lengths, "c": -lengths},
        {
            "some": {"a": 0 * outliers, "b": 5 * outliers, "c": outliers},
            "all": {"a": 3 * outliers, "b": 0 * outliers},
            "none": {"a": 4 * outliers, "b": 4 * outliers},
        },
    )
    assert found == pytest.approx({"some": (2 / 5 + 4 / 5) / 2, "all": 1, "none": 0})


def test_single_and_added_scores_are_judged_alike(
    digits: Dataset, found: detection.Detection
) -> None:
    """Adding the other of shape and strokes to a choice gives another choice."""
    assert set(found.alone) == set(DETECTORS) - {FUSED}
    fused = set(found.detectors.surprises)
    assert set(found.added) == set(DETECTORS) - {FUSED} - fused
    for name in {"shape", "strokes"} - fused:
        first = next(iter(found.detectors.surprises))
        assert found.added[name] == pytest.approx(found.misses[f"{first} + shape + strokes"])
    assert found.added["energy"] != found.alone["energy"]
    means = detection.averages(asdict(found))
    assert means["alone"]["energy"] == pytest.approx(np.mean(list(found.alone["energy"].values())))
    assert {kind: set(each) for kind, each in means.items()} == {
        "misses": set(found.misses),
        "alone": set(found.alone),
        "added": set(found.added),
    }
