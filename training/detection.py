"""Detectors fitted on training images, and fused by what they see of spoilt ones.

One score of each kind is fused, because each kind is blind to something: what the ensemble says,
how the image was made (`shape`), and where its strokes lie (`strokes`). Which of the ensemble's
scores it is, training images decide: the one that lets the fewest of the outliers of
`training.outliers` pass. No foreign image has a part in it, and no calibration image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.density import ClassGaussians, ClassSubspaces
from models.detectors import ENSEMBLE, Detectors, single_scores
from models.fusion import Surprise, fuse
from models.orientation import oriented_gradients
from models.preprocessing import InputSpec, grey, prepare
from models.shape import shape_statistics
from models.uncertainty import Array, summarise
from training.data import Dataset
from training.outliers import spoilt

Images = NDArray[np.uint8]
Ensemble = Callable[[NDArray[np.float32]], NDArray[np.float32]]

RANK = 40
RANKED = 20_000
SPOILT = 1_000
LEVELS = (0.95, 0.99)


@dataclass(frozen=True)
class Detection:
    """Detectors, and why these were fused.

    Attributes:
        detectors: fitted.
        misses: for each of the ensemble's scores, fused with the others, the share of each family
            of outliers that passes when 95 % and 99 % of the training images do; mean of the two.
    """

    detectors: Detectors
    misses: dict[str, dict[str, float]]


def fit(train: Dataset, spec: InputSpec, ensemble: Ensemble, seed: int) -> Detection:
    """Fit detectors, and choose what is fused.

    Args:
        train: the images that the ensemble was trained on.
        spec: its input.
        ensemble: prepared images [n, C, H, W] to member logits [n, M, K].
        seed: of the images that are ranked and of those that are spoilt.
    """
    order, classes = np.random.default_rng(seed).permutation(len(train)), len(train.classes)
    pixels = grey(prepare(train.images, spec)[0], spec)
    shape = ClassGaussians.fit(shape_statistics(pixels), train.labels, classes)
    rank = min(RANK, max(1, len(train) // classes // 2))
    strokes = ClassSubspaces.fit(oriented_gradients(pixels), train.labels, classes, rank)

    def score(images: Images) -> dict[str, Array]:
        prepared, _ = prepare(images, spec)
        prediction = summarise(ensemble(prepared))
        return single_scores(shape, strokes, prediction, grey(prepared, spec))

    familiar, chosen = score(train.images[order[:RANKED]]), order[:SPOILT]
    outliers = {
        family: score(images)
        for family, images in spoilt(train.images[chosen], train.labels[chosen], seed).items()
    }
    surprises = {name: Surprise.fit(values) for name, values in familiar.items()}
    others = [name for name in surprises if name not in ENSEMBLE]
    candidates = {first: {name: surprises[name] for name in (first, *others)} for first in ENSEMBLE}
    misses = {first: missed(fused, familiar, outliers) for first, fused in candidates.items()}
    best = min(misses, key=lambda first: np.mean(list(misses[first].values())))
    return Detection(Detectors(shape, strokes, candidates[best]), misses)


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
