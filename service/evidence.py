"""Outputs → what is known of each image, by the functions that calibrated the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.conformal import ConformalTest
from models.detectors import Detectors
from models.outputs import Outputs
from models.uncertainty import softmax, summarise

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the ensemble says of one image.

    Attributes:
        logits: member logits [M, K].
        finite: whether all outputs are finite; if not, the other fields mean nothing.
        probabilities: mean over members of probabilities [K].
        entropies: predictive entropy, expected entropy and mutual information, in nats.
        scores: score of every OOD detector.
        p_values: p-value of every OOD detector.
    """

    logits: Floats
    finite: bool
    probabilities: NDArray[np.float64]
    entropies: tuple[float, float, float]
    scores: Mapping[str, float]
    p_values: Mapping[str, float]

    def member_probabilities(self) -> NDArray[np.float64]:
        """Probabilities [M, K] of each member by itself."""
        return softmax(self.logits)


def weigh(
    outputs: Outputs, pixels: Floats, detectors: Detectors, tests: Mapping[str, ConformalTest]
) -> list[Evidence]:
    """The evidence on each of B images, from the ensemble's outputs and grey values [B, H, W].

    Outputs that are not finite are set to zero, so that nothing that is not a number leaves here;
    their images are marked.
    """
    logits, features = outputs.logits, outputs.features
    finite: NDArray[np.bool_] = np.asarray(
        np.isfinite(logits).all(axis=(1, 2)) & np.isfinite(features).all(axis=(1, 2))
    )
    if not finite.all():
        logits, features = (
            np.where(finite[:, None, None], values, np.float32(0)) for values in (logits, features)
        )
    prediction = summarise(logits)
    by_detector = detectors.scores(prediction, features, pixels)
    p_values = {name: tests[name].p_values(values).tolist() for name, values in by_detector.items()}
    raw = {name: values.tolist() for name, values in by_detector.items()}
    entropies = zip(
        prediction.predictive_entropy.tolist(),
        prediction.expected_entropy.tolist(),
        prediction.mutual_information.tolist(),
        strict=True,
    )
    return [
        Evidence(
            logits[index],
            is_finite,
            prediction.probabilities[index],
            entropy,
            {name: values[index] for name, values in raw.items()},
            {name: values[index] for name, values in p_values.items()},
        )
        for index, (is_finite, entropy) in enumerate(zip(finite.tolist(), entropies, strict=True))
    ]
