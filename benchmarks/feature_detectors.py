"""Detectors on penultimate features that the gate leaves out, for their cost or their misses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.density import Classes, ClassGaussians, Floats
from models.features import FeatureNeighbours
from models.uncertainty import Array

Score = Callable[[Floats, Classes], Array]


@dataclass(frozen=True)
class FeatureDetectors:
    """The detectors, by name, each from features [n, M, F] and predicted classes [n] to scores [n].

    variance     of each unit over members, mean over units
    Mahalanobis  squared distance to the nearest class under the covariance that all classes share
                 (Lee et al., NeurIPS 2018), mean over members
    density      −ln p of the mixture of class Gaussians, each with its own covariance (Mukhoti et
                 al. 2021, arXiv 2102.11582), mean over members
    1-NN         of `models.features.FeatureNeighbours`, with all directions and all references
    """

    scores: dict[str, Score]

    @classmethod
    def fit(cls, features: Floats, classes: Classes, num_classes: int) -> FeatureDetectors:
        """From features [n, m, F] of training images of every class and their classes [n].

        The last three look at the first m members of the features that they are given.
        """
        size, members, width = features.shape
        values = [np.asarray(features[:, each], np.float64) for each in range(members)]
        tied = [_mahalanobis(each, classes, num_classes) for each in values]
        mixtures = [_density(each, classes, num_classes) for each in values]
        nearest = FeatureNeighbours.fit(features, classes, num_classes, members * width, size)
        return cls(
            {
                "features: variance": lambda new, _: _variance(new),
                "features: Mahalanobis": lambda new, _: _mean(tied, new),
                "features: density": lambda new, _: _mean(mixtures, new),
                "features: 1-NN": nearest.scores,
            }
        )


def _variance(features: Floats) -> Array:
    return np.asarray(features.var(axis=1, dtype=np.float64).mean(axis=1))


def _mean(members: list[Callable[[Array], Array]], features: Floats) -> Array:
    """Mean score [n] of features [n, M, F] over the members that were fitted."""
    scores = [
        score(np.asarray(features[:, member], np.float64)) for member, score in enumerate(members)
    ]
    return np.asarray(np.mean(scores, axis=0))


def _mahalanobis(values: Array, classes: Classes, num_classes: int) -> Callable[[Array], Array]:
    """Squared distance [n] of features [n, F] to the nearest class, fitted to one member's."""
    means = np.stack([values[classes == label].mean(axis=0) for label in range(num_classes)])
    within = values - means[classes]
    whitening = ClassGaussians.fit(within, np.zeros_like(classes), 1).whitening[0]
    centres = means @ whitening.T

    def score(new: Array) -> Array:
        points = new @ whitening.T
        return np.asarray(
            np.min([np.square(points - centre).sum(axis=1) for centre in centres], axis=0)
        )

    return score


def _density(values: Array, classes: Classes, num_classes: int) -> Callable[[Array], Array]:
    """−ln p [n] of features [n, F] under the mixture fitted to one member's, nats."""
    gaussians = ClassGaussians.fit(values, classes, num_classes)
    shares = np.bincount(classes, minlength=num_classes) / len(classes)
    _, volumes = np.linalg.slogdet(gaussians.whitening)
    constants = np.log(shares) + volumes - values.shape[1] / 2 * np.log(2 * np.pi)

    def score(new: Array) -> Array:
        squares = [
            np.square((new - mean) @ whitening.T).sum(axis=1)
            for mean, whitening in zip(gaussians.mean, gaussians.whitening, strict=True)
        ]
        logs = constants - np.stack(squares, axis=1) / 2
        return np.asarray(-np.logaddexp.reduce(logs, axis=1))

    return score
