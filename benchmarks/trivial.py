"""Detectors without a network: what any other must beat to claim that it has learnt something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.shape import Pixels

Array = NDArray[np.float64]

REFERENCES = 6_000
COMPONENTS = (50, 150)
BOX = 20 / 28


@dataclass(frozen=True)
class Trivial:
    """The detectors, by name, each from grey values [n, H, W] to scores [n]."""

    scores: dict[str, Callable[[Pixels], Array]]

    @classmethod
    def fit(cls, train: Pixels) -> Trivial:
        """From grey values [n, H, W] of training images in random order."""
        flat = train.reshape(len(train), -1)
        mean = flat.mean(axis=0)
        centred = (flat - mean).astype(np.float64)
        _, directions = np.linalg.eigh(centred.T @ centred)
        brightness, references = float(flat.mean()), flat[:REFERENCES]

        def residual(components: int) -> Callable[[Pixels], Array]:
            basis = directions[:, ::-1][:, :components].astype(np.float32)

            def score(pixels: Pixels) -> Array:
                values = pixels.reshape(len(pixels), -1) - mean
                left = values - (values @ basis) @ basis.T
                return np.asarray(np.linalg.norm(left, axis=1), dtype=np.float64)

            return score

        scores: dict[str, Callable[[Pixels], Array]] = {
            "mean intensity": lambda pixels: np.abs(pixels.mean(axis=(1, 2)) - brightness),
            "mass outside the box": _outside,
            **{f"pixel PCA-{count}": residual(count) for count in COMPONENTS},
            "pixel 1-NN": lambda pixels: _nearest(pixels.reshape(len(pixels), -1), references),
        }
        return cls(scores)


def _outside(pixels: Pixels) -> Array:
    """Mass outside the central 20/28 of the image."""
    height, width = pixels.shape[1:]
    top, left = round((1 - BOX) / 2 * height), round((1 - BOX) / 2 * width)
    inside = pixels[:, top : height - top, left : width - left].sum(axis=(1, 2))
    return np.asarray(pixels.sum(axis=(1, 2)) - inside, dtype=np.float64)


def _nearest(values: NDArray[np.float32], references: NDArray[np.float32]) -> Array:
    """Distance of each value [n, F] to its nearest reference [R, F]."""
    squares = np.square(references).sum(axis=1)
    nearest = np.concatenate(
        [
            np.square(part).sum(axis=1) + (squares - 2 * part @ references.T).min(axis=1)
            for part in np.array_split(values, max(1, len(values) // 1000))
        ]
    )
    return np.asarray(np.sqrt(np.maximum(nearest, 0)), dtype=np.float64)
