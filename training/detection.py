"""Detectors fitted on training images, and fused by what they see of spoilt ones.

Each kind of score is blind to something: what the ensemble says, how the image was made (`shape`),
and where its strokes lie (`strokes`). One of the ensemble's scores is fused with one or both of the
others; which, training images decide: those that let the fewest outliers pass. Outliers are the
spoilt images of `training.outliers`, and images that are taken for another class: an ensemble that
had never seen their class would take them for the most similar one. No foreign image has a part in
it, and no calibration image. Scores of the members' features are fitted too, but are no candidates:
they tell misnamed images by a class that the network has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.density import ClassGaussians, ClassSubspaces
from models.detectors import ENSEMBLE, Detectors
from models.features import FeatureNeighbours, FeatureSubspaces, RelativeMahalanobis
from models.fusion import Surprise, fuse
from models.orientation import oriented_gradients
from models.outputs import Ensemble
from models.preprocessing import InputSpec, grey, prepare
from models.shape import shape_statistics
from models.uncertainty import Array, summarise
from training.data import Dataset
from training.outliers import spoilt

Images = NDArray[np.uint8]

RANK, FEATURE_RANK = 40, 10
RANKED, REFERENCES = 20_000, 20_000
SPOILT = 1_000
LEVELS = (0.95, 0.99)
OTHERS = (("shape", "strokes"), ("shape",), ("strokes",))


@dataclass(frozen=True)
class Detection:
    """Detectors, and why these were fused.

    Attributes:
        detectors: fitted.
        misses: for every choice of scores, joined by " + ", the share of each family of outliers
            that passes when 95 % and 99 % of the training images do; mean of the two.
        alone: the same for every single score, for information.
        added: the same for what is fused and one score more, for information.
    """

    detectors: Detectors
    misses: dict[str, dict[str, float]]
    alone: dict[str, dict[str, float]]
    added: dict[str, dict[str, float]]


def fit(train: Dataset, spec: InputSpec, ensemble: Ensemble, seed: int) -> Detection:
    """Fit detectors, and choose what is fused.

    Args:
        train: the images that the ensemble was trained on.
        spec: its input.
        ensemble: prepared images [n, C, H, W] to its outputs.
        seed: of the images that are ranked, that are spoilt, and whose features are kept.
    """
    order, classes = np.random.default_rng(seed).permutation(len(train)), len(train.classes)
    pixels = grey(prepare(train.images, spec)[0], spec)
    known = train.select(order[-REFERENCES:])
    features = ensemble(prepare(known.images, spec)[0]).features
    rank, feature_rank = _rank(RANK, train), _rank(FEATURE_RANK, known)
    unfused = Detectors(
        shape=ClassGaussians.fit(shape_statistics(pixels), train.labels, classes),
        strokes=ClassSubspaces.fit(oriented_gradients(pixels), train.labels, classes, rank),
        feature_subspaces=FeatureSubspaces.fit(features, known.labels, classes, feature_rank),
        feature_neighbours=FeatureNeighbours.fit(features, known.labels, classes),
        relative_mahalanobis=RelativeMahalanobis.fit(features, known.labels, classes),
        surprises={},
    )

    def score(images: Images, likeliest: int = 1) -> dict[str, Array]:
        prepared, _ = prepare(images, spec)
        outputs, pixels = ensemble(prepared), grey(prepared, spec)
        prediction = summarise(outputs.logits[:, : outputs.features.shape[1]])
        taken_for = prediction.probabilities.argsort(axis=1)[:, -likeliest]
        return unfused.single_scores(prediction, outputs.features, pixels, taken_for)

    familiar, chosen = score(train.images[order[:RANKED]]), order[:SPOILT]
    outliers = {
        family: score(images)
        for family, images in spoilt(train.images[chosen], train.labels[chosen], seed).items()
    }
    outliers["misnamed"] = score(train.images[chosen], likeliest=2)
    surprises = {name: Surprise.fit(values) for name, values in familiar.items()}

    def judge(*names: str) -> dict[str, float]:
        return missed({name: surprises[name] for name in names}, familiar, outliers)

    choices = [(first, *others) for first in ENSEMBLE for others in OTHERS]
    misses = {names: judge(*names) for names in choices}
    best = min(misses, key=lambda names: np.mean(list(misses[names].values())))
    return Detection(
        replace(unfused, surprises={name: surprises[name] for name in best}),
        misses={" + ".join(names): shares for names, shares in misses.items()},
        alone={name: judge(name) for name in surprises},
        added={name: judge(*best, name) for name in surprises if name not in best},
    )


def averages(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What `Detection` says of choices, single and added scores: means over families of outliers.

    Args:
        found: `misses`, `alone` and `added` of a `Detection`.
    """
    return {
        kind: {
            names: float(np.mean(list(shares.values()))) for names, shares in found[kind].items()
        }
        for kind in ("misses", "alone", "added")
    }


def _rank(most: int, images: Dataset) -> int:
    """At most one direction for every two images of a class."""
    return min(most, max(1, len(images) // len(images.classes) // 2))


def missed(
    surprises: Mapping[str, Surprise],
    familiar: Mapping[str, Array],
    outliers: Mapping[str, Mapping[str, Array]],
) -> dict[str, float]:
    """Share of each family of outliers that passes at thresholds that pass 95 % and 99 %, mean.

    Args:
        surprises: of the detectors that are fused.
        familiar: their scores at n familiar images.
        outliers: their scores at the images of each family.
    """
    thresholds = np.quantile(fuse(surprises, familiar), LEVELS)
    return {
        family: float(np.mean(fuse(surprises, scores) <= thresholds[:, None]))
        for family, scores in outliers.items()
    }
