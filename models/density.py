"""How far an image's description lies from those of its class, by what training images say of it.

Both distances look at the predicted class alone: an image is unfamiliar if it is unlike the class
that the ensemble takes it for. Neither sees labels when it judges. Every image is multiplied by
itself, so that its distance is the same, to the bit, in whatever batch it comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.uncertainty import Array

Floats = NDArray[np.floating]
Classes = NDArray[np.integer]

SHRINKAGE = 0.02
NOISE = 1e-12  # of a unit vector: rounding, which is another from run to run on some processors


@dataclass(frozen=True)
class ClassGaussians:
    """One Gaussian for each class (Lee et al., NeurIPS 2018, with a covariance of its own).

    d²(x) = |W_c (x − μ_c)|², where W_cᵀ W_c is the inverse covariance of class c, shrunk by 2 % to
    its diagonal.

    Attributes:
        mean: μ_c, [K, F].
        whitening: W_c, [K, F, F].
    """

    mean: Array
    whitening: Array

    @classmethod
    def fit(cls, descriptions: Floats, classes: Classes, num_classes: int) -> Self:
        """From descriptions [n, F] of training images and their classes [n].

        A class of fewer than two images gets the Gaussian of all of them.
        """
        values = np.asarray(descriptions, dtype=np.float64)
        fitted = [_gaussian(part) for part in _parts(values, classes, num_classes)]
        mean, whitening = zip(*fitted, strict=True)
        return cls(np.stack(mean), np.stack(whitening))

    def distances(self, descriptions: Floats, classes: Classes) -> Array:
        """d² [B] of descriptions [B, F] to the Gaussian of the predicted class [B]."""
        centred = np.asarray(descriptions, dtype=np.float64) - self.mean[classes]
        return squares(_each(self.whitening, classes, centred))


@dataclass(frozen=True)
class ClassSubspaces:
    """The r principal directions of each class; an image is unfamiliar by what they leave of it.

    |x − μ_c − V_cᵀ V_c (x − μ_c)|, the reconstruction error of a class-wise PCA.

    Attributes:
        mean: μ_c, [K, F].
        basis: V_c, orthonormal rows, [K, r, F].
    """

    mean: NDArray[np.float32]
    basis: NDArray[np.float32]

    @classmethod
    def fit(cls, descriptions: Floats, classes: Classes, num_classes: int, rank: int) -> Self:
        """From descriptions [n, F] of training images and their classes [n].

        A class of fewer than two images gets the subspace of all of them.
        """
        values = np.asarray(descriptions, dtype=np.float64)
        means, bases = [], []
        for part in _parts(values, classes, num_classes):
            mean = part.mean(axis=0)
            _, directions = np.linalg.eigh((part - mean).T @ (part - mean))
            means.append(mean)
            bases.append(directions[:, ::-1][:, :rank].T)
        basis = np.ascontiguousarray(np.stack(bases), dtype=np.float32)  # as a file will have it
        basis[np.abs(basis) < NOISE] = 0
        return cls(np.stack(means).astype(np.float32), basis)

    def residuals(self, descriptions: Floats, classes: Classes) -> Array:
        """Length [B] of what the predicted class [B] leaves of descriptions [B, F]."""
        centred = np.asarray(descriptions, dtype=np.float32) - self.mean[classes]
        inside = _each(self.basis, classes, centred)
        return np.sqrt(np.maximum(squares(centred) - squares(inside), 0))


def _parts(values: Array, classes: Classes, num_classes: int) -> list[Array]:
    """Descriptions of each class; all of them for a class of fewer than two."""
    parts = [values[classes == label] for label in range(num_classes)]
    return [part if len(part) > 1 else values for part in parts]


def _each(matrices: Floats, classes: Classes, vectors: Floats) -> Floats:
    """A_c v [B, r] of vectors v [B, F], each by the matrix [r, F] of its class."""
    products, of_class = np.empty((len(vectors), matrices.shape[1]), vectors.dtype), list(matrices)
    for label, vector, product in zip(classes.tolist(), vectors, products, strict=True):
        of_class[label].dot(vector, out=product)
    return products


def squares(vectors: Floats) -> Array:
    """|v|² [...] of vectors [..., F]."""
    total: Array = np.square(vectors, dtype=np.float64).sum(axis=-1)
    return total


def _gaussian(values: Array) -> tuple[Array, Array]:
    """Mean [F] and whitening matrix [F, F] of values [n, F]."""
    scale = np.maximum(values.std(axis=0), 1e-9)
    mean = values.mean(axis=0)
    standardised = (values - mean) / scale
    correlation = standardised.T @ standardised / len(values)
    shrunk = (1 - SHRINKAGE) * correlation
    np.fill_diagonal(shrunk, 1.0)
    whitening = np.linalg.inv(np.linalg.cholesky(shrunk)) / scale
    return mean, whitening
