"""How far an image's penultimate features lie from those of training images, over a few members.

Each distance is to the class that the ensemble takes the image for, or to the nearest class. Units
of one member correspond to no units of another, so no two members' features are ever compared.
Every image is multiplied by itself, so that its score is the same, to the bit, in whatever batch it
comes. Features are [B, M, F]; a detector of m members looks at the first m.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.density import SHRINKAGE, Classes, ClassSubspaces, Floats, squares
from models.uncertainty import Array

LEAST_SPREAD = 1e-3  # of a unit, as a share of the largest: some units hardly ever fire
COMPONENTS = 32
REFERENCES = 750


@dataclass(frozen=True)
class FeatureSubspaces:
    """What the r principal directions of a class leave of the features, as a share of them.

    mean over members of |φ − μ_c − V_cᵀ V_c (φ − μ_c)| / |φ|, with c the predicted class: after
    ViM (Wang et al. 2022, arXiv 2203.10807), whose residual is that of all classes together.

    Attributes:
        mean: μ, [m, K, F].
        basis: V, orthonormal rows, [m, K, r, F].
    """

    mean: NDArray[np.float32]
    basis: NDArray[np.float32]

    @classmethod
    def fit(cls, features: Floats, classes: Classes, num_classes: int, rank: int) -> Self:
        """From features [n, m, F] of training images and their classes [n]."""
        members = [
            ClassSubspaces.fit(features[:, member], classes, num_classes, rank)
            for member in range(features.shape[1])
        ]
        # In the order in memory that a file gives it back in: products round alike.
        basis = np.ascontiguousarray([each.basis for each in members])
        return cls(np.stack([each.mean for each in members]), basis)

    def scores(self, features: Floats, classes: Classes) -> Array:
        """Scores [B] of features [B, M, F], M ≥ m, of images of predicted classes [B]."""
        shares = [
            ClassSubspaces(mean, basis).residuals(values, classes) / _lengths(values)
            for mean, basis, values in zip(self.mean, self.basis, _members(features), strict=False)
        ]
        share: Array = np.mean(shares, axis=0)
        return share


@dataclass(frozen=True)
class FeatureNeighbours:
    """Distance to the nearest training image of the predicted class (Sun et al. 2022).

    |z − z_r|, least over references r, with z = P u and u the members' features, each scaled to
    length 1/√m, in one row; P keeps their d principal directions (arXiv 2204.06507, which keeps
    all, and looks at all classes).

    Attributes:
        directions: P, [d, m F].
        references: z_r in the order of their classes, [R, d].
        bounds: first and last + 1 of each class's references, [K, 2].
    """

    directions: NDArray[np.float32]
    references: NDArray[np.float16]
    bounds: NDArray[np.int64]

    @classmethod
    def fit(
        cls,
        features: Floats,
        classes: Classes,
        num_classes: int,
        components: int = COMPONENTS,
        references: int = REFERENCES,
    ) -> Self:
        """From features [n, m, F] of training images in random order and their classes [n].

        The first images of each class are its references. A class of no image has those of all.
        """
        rows = _directions(features)
        centred = (rows - rows.mean(axis=0)).astype(np.float64)
        _, principal = np.linalg.eigh(centred.T @ centred)
        directions = np.ascontiguousarray(principal[:, ::-1][:, :components].T, dtype=np.float32)
        parts = [np.flatnonzero(classes == label)[:references] for label in range(num_classes)]
        last = np.cumsum([len(part) for part in parts])
        bounds = [
            (end - len(part), end) if len(part) else (0, last[-1])
            for part, end in zip(parts, last, strict=True)
        ]
        kept = _each(directions, rows[np.concatenate(parts)]).astype(np.float16)
        return cls(directions, kept, np.array(bounds, dtype=np.int64))

    def scores(self, features: Floats, classes: Classes) -> Array:
        """Scores [B] of features [B, M, F], M ≥ m, of images of predicted classes [B]."""
        members = self.directions.shape[1] // features.shape[2]
        points = _each(self.directions, _directions(features[:, :members]))
        nearest = [
            first + np.argmax(self._known[first:last] @ point - self._half_squares[first:last])
            for point, (first, last) in zip(points, self.bounds[classes], strict=True)
        ]
        return _lengths(points - self._known[nearest])

    @cached_property
    def _known(self) -> NDArray[np.float32]:
        """The references in single precision, in which products are fast."""
        return self.references.astype(np.float32)

    @cached_property
    def _half_squares(self) -> NDArray[np.float32]:
        halves: NDArray[np.float32] = np.square(self._known).sum(axis=1) / 2
        return halves


@dataclass(frozen=True)
class RelativeMahalanobis:
    """Distance to the nearest class beyond that to all classes (Ren et al. 2021, arXiv 2106.09022).

    mean over members of min_c M_c − M_0, with M_c the squared Mahalanobis distance to class c
    under the covariance Σ that all classes share, shrunk by 2 % to its diagonal, and M_0 that to
    the mean of all images under their covariance Σ + B, B that of the classes' means. The two
    agree wherever classes do not differ, so the difference needs the K − 1 linear discriminants
    z = A (φ − μ) alone, with A Σ Aᵀ = I and A B Aᵀ = diag(λ):

        M_c − M_0 = |z − z_c|² − Σ_i z_i² / (1 + λ_i).

    Attributes:
        mean: μ, [m, F].
        discriminants: A, [m, K − 1, F].
        centres: z_c, [m, K, K − 1].
        ratios: λ, [m, K − 1].
    """

    mean: Array
    discriminants: Array
    centres: Array
    ratios: Array

    @classmethod
    def fit(cls, features: Floats, classes: Classes, num_classes: int) -> Self:
        """From features [n, m, F] of training images and their classes [n].

        A class of no image has the mean of all.
        """
        fitted = [
            _discriminants(np.asarray(features[:, member], np.float64), classes, num_classes)
            for member in range(features.shape[1])
        ]
        return cls(*(np.stack(arrays) for arrays in zip(*fitted, strict=True)))

    def scores(self, features: Floats) -> Array:
        """Scores [B] of features [B, M, F], M ≥ m."""
        centred = features[:, : len(self.mean)] - self.mean
        points = (self.discriminants @ centred[..., None])[..., 0]
        to_classes = np.square(points[:, :, None] - self.centres).sum(axis=3)
        to_all = (points**2 / (1 + self.ratios)).sum(axis=2)
        relative: Array = (to_classes.min(axis=2) - to_all).mean(axis=1)
        return relative


def _members(features: Floats) -> list[Floats]:
    """Features [B, F] of each of M members, from features [B, M, F]."""
    return list(features.transpose(1, 0, 2))


def _directions(features: Floats) -> NDArray[np.float32]:
    """Features [B, m, F], each member's scaled to length 1/√m, as rows [B, m F]."""
    values = np.asarray(features, dtype=np.float32)
    scaled = values / (_lengths(values)[..., None] * np.sqrt(values.shape[1]))
    rows: NDArray[np.float32] = scaled.astype(np.float32).reshape(len(values), -1)
    return rows


def _each(matrix: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """A v [B, r] of vectors v [B, F], one by one."""
    products: NDArray[np.float32] = (matrix @ vectors[..., None])[..., 0]
    return products


def _lengths(vectors: Floats) -> Array:
    """|v| [...] of vectors [..., F], at least 1e-9."""
    return np.maximum(np.sqrt(squares(vectors)), 1e-9)


def _discriminants(
    values: Array, classes: Classes, num_classes: int
) -> tuple[Array, Array, Array, Array]:
    """μ, A, z_c and λ of one member's features [n, F]."""
    mean = values.mean(axis=0)
    means = np.stack(
        [
            values[classes == label].mean(axis=0) if (classes == label).any() else mean
            for label in range(num_classes)
        ]
    )
    within = values - means[classes]
    spread = within.std(axis=0)
    scale = np.maximum(spread, max(LEAST_SPREAD * spread.max(), 1e-9))
    correlation = (1 - SHRINKAGE) * (within / scale).T @ (within / scale) / len(values)
    np.fill_diagonal(correlation, 1.0)
    whitening = np.linalg.inv(np.linalg.cholesky(correlation)) / scale
    whitened = (means - mean) @ whitening.T
    shares = np.bincount(classes, minlength=num_classes) / len(values)
    ratios, directions = np.linalg.eigh((whitened.T * shares) @ whitened)
    kept = slice(None, -num_classes, -1)
    discriminants = directions[:, kept].T @ whitening
    return mean, discriminants, (means - mean) @ discriminants.T, ratios[kept]
