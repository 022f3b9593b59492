"""Out-of-distribution scores: the higher, the less an image resembles the training data.

Some look at what the ensemble says, some at the image itself beside the class that the ensemble
takes it for, some at the features from which it judges; `fused` is all that a bundle trusts in one
(`models.fusion`). A score is no decision: it becomes one through its conformal p-value
(`models.conformal`) and a policy (`models.policy`).

"The ensemble" is the first group of members here, so that a score does not depend on how many
members an image is shown to (`models.settling`), and a foreign image has left after the first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.density import Classes, ClassGaussians, ClassSubspaces, Floats
from models.features import FeatureNeighbours, FeatureSubspaces, RelativeMahalanobis
from models.fusion import Surprise, fuse
from models.orientation import oriented_gradients
from models.shape import Pixels, shape_statistics
from models.uncertainty import Array, Prediction

ENSEMBLE: dict[str, Callable[[Prediction], Array]] = {
    "predictive_entropy": lambda prediction: prediction.predictive_entropy,
    "mutual_information": lambda prediction: prediction.mutual_information,
    "max_probability": lambda prediction: 1.0 - prediction.probabilities.max(axis=1),
    "max_logit": lambda prediction: -prediction.max_logit,
    "energy": lambda prediction: prediction.energy,
}
FITTED: dict[str, type[Any]] = {
    "shape": ClassGaussians,
    "strokes": ClassSubspaces,
    "feature_subspaces": FeatureSubspaces,
    "feature_neighbours": FeatureNeighbours,
    "relative_mahalanobis": RelativeMahalanobis,
}
FUSED = "fused"
DETECTORS = (*ENSEMBLE, *FITTED, FUSED)

SHAPES = {
    "shape.mean": "KS",
    "shape.whitening": "KSS",
    "strokes.mean": "KG",
    "strokes.basis": "KRG",
    "feature_subspaces.mean": "mKF",
    "feature_subspaces.basis": "mKrF",
    "feature_neighbours.directions": "dW",
    "feature_neighbours.references": "Nd",
    "feature_neighbours.bounds": "K2",
    "relative_mahalanobis.mean": "mF",
    "relative_mahalanobis.discriminants": "mDF",
    "relative_mahalanobis.centres": "mKD",
    "relative_mahalanobis.ratios": "mD",
}
"""Shape of every stored array; a letter is the same size throughout, and W is m F."""

BOUNDS, REFERENCES = "feature_neighbours.bounds", "feature_neighbours.references"


def ensemble_scores(
    prediction: Prediction, names: Collection[str] = tuple(ENSEMBLE)
) -> dict[str, Array]:
    """Scores [B] of what the ensemble says alone.

    `max_probability` scores 1 − max p̄, `max_logit` the negative largest mean logit (Hendrycks et
    al. 2022, arXiv 1911.11132), `energy` −logsumexp of the logits, mean over members (Liu et al.
    2020, arXiv 2010.03759).
    """
    return {name: score(prediction) for name, score in ENSEMBLE.items() if name in names}


@dataclass(frozen=True)
class Detectors:
    """All detectors of a bundle, with what they know of the training images.

    Attributes:
        shape: of `models.shape.shape_statistics`; the score is the squared distance to the
            predicted class.
        strokes: of `models.orientation.oriented_gradients`; the score is what the predicted class
            leaves of them.
        feature_subspaces, feature_neighbours, relative_mahalanobis: of the first members' features.
        surprises: of the detectors that are fused.
    """

    shape: ClassGaussians
    strokes: ClassSubspaces
    feature_subspaces: FeatureSubspaces
    feature_neighbours: FeatureNeighbours
    relative_mahalanobis: RelativeMahalanobis
    surprises: Mapping[str, Surprise]

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Members whose features are looked at and units of each, m and F."""
        members, units = self.relative_mahalanobis.mean.shape
        return members, units

    def needed(self, detector: str) -> frozenset[str]:
        """What tells a detector's score: itself, and what it fuses."""
        fused = self.surprises if detector == FUSED else ()
        return frozenset((detector, *fused))

    def scores(
        self,
        prediction: Prediction,
        features: Floats,
        pixels: Pixels,
        names: Collection[str] = DETECTORS,
    ) -> dict[str, Array]:
        """Scores [B] of B images, by detector.

        Args:
            prediction: what the first group of members says of them.
            features: of the first m members, [B, m, F].
            pixels: grey values from 0 to 1, [B, H, W].
            names: of the detectors that are asked, those that one of them fuses included.
        """
        classes = prediction.probabilities.argmax(axis=1)
        scores = self.single_scores(prediction, features, pixels, classes, names)
        return scores | ({FUSED: fuse(self.surprises, scores)} if FUSED in names else {})

    def single_scores(
        self,
        prediction: Prediction,
        features: Floats,
        pixels: Pixels,
        classes: Classes,
        names: Collection[str] = DETECTORS,
    ) -> dict[str, Array]:
        """Scores [B] of the detectors but the fused one, beside the classes [B] that are given."""
        fitted: dict[str, Callable[[], Array]] = {
            "shape": lambda: self.shape.distances(shape_statistics(pixels), classes),
            "strokes": lambda: self.strokes.residuals(oriented_gradients(pixels), classes),
            "feature_subspaces": lambda: self.feature_subspaces.scores(features, classes),
            "feature_neighbours": lambda: self.feature_neighbours.scores(features, classes),
            "relative_mahalanobis": lambda: self.relative_mahalanobis.scores(features),
        }
        asked = {name: score() for name, score in fitted.items() if name in names}
        return ensemble_scores(prediction, names) | asked

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What `from_arrays` needs, by name."""
        fitted = {name: attrgetter(name)(self) for name in SHAPES}
        return fitted | {
            f"surprise.{name}": np.stack([surprise.scores, surprise.values])
            for name, surprise in self.surprises.items()
        }

    @staticmethod
    def names(fused: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the arrays of detectors of which those named are fused."""
        return (*SHAPES, *(f"surprise.{name}" for name in fused))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]], fused: tuple[str, ...]) -> Self:
        """Detectors as they were stored.

        Raises:
            ValueError: an array has another shape than it must, or holds what is no number.
        """
        for name in cls.names(fused):
            kind, expected = ("i", "whole") if name == BOUNDS else ("f", "finite real")
            if arrays[name].dtype.kind != kind or not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} must hold {expected} numbers")
        _check_shapes(arrays)
        fitted = {}
        for name, detector in FITTED.items():
            mine = [each for each in SHAPES if each.startswith(f"{name}.")]
            fitted[name] = detector(**{each.split(".")[1]: arrays[each] for each in mine})
        surprises = {}
        for name in fused:
            pair = arrays[f"surprise.{name}"].astype(np.float64)
            if pair.ndim != 2 or len(pair) != 2 or (np.diff(pair, axis=1) < 0).any():
                raise ValueError(f"surprise.{name} must be two rising rows")
            surprises[name] = Surprise(*pair)
        return cls(**fitted, surprises=surprises)


def _check_shapes(arrays: Mapping[str, NDArray[np.generic]]) -> None:
    sizes = {"2": 2}
    for name, letters in SHAPES.items():
        shape = arrays[name].shape
        fits = len(shape) == len(letters) and 0 not in shape
        if not fits or any(
            sizes.setdefault(letter, size) != size
            for letter, size in zip(letters, shape, strict=True)
        ):
            raise ValueError(f"{name} does not fit: its shape is {shape}")
    if sizes["W"] != sizes["m"] * sizes["F"]:
        raise ValueError(f"feature_neighbours.directions does not fit: {sizes['W']} is not m F")
    first, last = arrays[BOUNDS].astype(np.int64).T
    if (first < 0).any() or (first >= last).any() or last.max() > len(arrays[REFERENCES]):
        raise ValueError(f"{BOUNDS} does not fit: a class has no references")
