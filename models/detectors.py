"""Out-of-distribution scores: the higher, the less an image resembles the training data.

Some look at what the ensemble says, others at the image itself beside the class that the ensemble
takes it for; `fused` is all that a bundle trusts in one (`models.fusion`). A score is no decision:
it becomes one through its conformal p-value (`models.conformal`) and a policy (`models.policy`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.density import Classes, ClassGaussians, ClassSubspaces
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
FUSED = "fused"
DETECTORS = (*ENSEMBLE, "shape", "strokes", FUSED)


def ensemble_scores(prediction: Prediction) -> dict[str, Array]:
    """Scores [B] of what the ensemble says alone.

    `max_probability` scores 1 − max p̄, `max_logit` the negative largest mean logit (Hendrycks et
    al. 2022, arXiv 1911.11132), `energy` −logsumexp of the logits, mean over members (Liu et al.
    2020, arXiv 2010.03759).
    """
    return {name: score(prediction) for name, score in ENSEMBLE.items()}


@dataclass(frozen=True)
class Detectors:
    """All detectors of a bundle, with what they know of the training images.

    Attributes:
        shape: of `models.shape.shape_statistics`; the score is the squared distance to the
            predicted class.
        strokes: of `models.orientation.oriented_gradients`; the score is what the predicted class
            leaves of them.
        surprises: of the detectors that are fused.
    """

    shape: ClassGaussians
    strokes: ClassSubspaces
    surprises: Mapping[str, Surprise]

    def scores(self, prediction: Prediction, pixels: Pixels) -> dict[str, Array]:
        """Every detector's score [B], of B images.

        Args:
            prediction: what the ensemble says of them.
            pixels: grey values from 0 to 1, [B, H, W].
        """
        classes = prediction.probabilities.argmax(axis=1)
        scores = single_scores(self.shape, self.strokes, prediction, pixels, classes)
        return scores | {FUSED: fuse(self.surprises, scores)}

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What `from_arrays` needs, by name."""
        fused = {
            f"surprise.{name}": np.stack([surprise.scores, surprise.values])
            for name, surprise in self.surprises.items()
        }
        return {
            "shape.mean": self.shape.mean,
            "shape.whitening": self.shape.whitening,
            "strokes.mean": self.strokes.mean,
            "strokes.basis": self.strokes.basis,
            **fused,
        }

    @staticmethod
    def names(fused: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the arrays of detectors of which those named are fused."""
        fitted = ("shape.mean", "shape.whitening", "strokes.mean", "strokes.basis")
        return (*fitted, *(f"surprise.{name}" for name in fused))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]], fused: tuple[str, ...]) -> Self:
        """Detectors as they were stored.

        Raises:
            ValueError: an array has another shape than it must, or holds what is no number.
        """
        for name in cls.names(fused):
            values = arrays[name]
            if values.dtype.kind != "f" or not np.isfinite(values).all():
                raise ValueError(f"{name} must hold finite real numbers")
        shape = ClassGaussians(
            arrays["shape.mean"].astype(np.float64), arrays["shape.whitening"].astype(np.float64)
        )
        strokes = ClassSubspaces(
            arrays["strokes.mean"].astype(np.float32), arrays["strokes.basis"].astype(np.float32)
        )
        if shape.whitening.shape != (*shape.mean.shape, shape.mean.shape[-1]):
            raise ValueError("shape.whitening does not fit shape.mean")
        basis = strokes.basis.shape
        if len(basis) != 3 or 0 in basis or (basis[0], basis[2]) != strokes.mean.shape:
            raise ValueError("strokes.basis does not fit strokes.mean")
        surprises = {}
        for name in fused:
            pair = arrays[f"surprise.{name}"].astype(np.float64)
            if pair.ndim != 2 or len(pair) != 2 or (np.diff(pair, axis=1) < 0).any():
                raise ValueError(f"surprise.{name} must be two rising rows")
            surprises[name] = Surprise(*pair)
        return cls(shape, strokes, surprises)


def single_scores(
    shape: ClassGaussians,
    strokes: ClassSubspaces,
    prediction: Prediction,
    pixels: Pixels,
    classes: Classes,
) -> dict[str, Array]:
    """Scores [B] of all detectors but the fused one, beside the classes [B] that are given."""
    return {
        **ensemble_scores(prediction),
        "shape": shape.distances(shape_statistics(pixels), classes),
        "strokes": strokes.residuals(oriented_gradients(pixels), classes),
    }
