"""Outputs → what is known of each image, by the functions that calibrated the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.conformal import ConformalTest
from models.detectors import Detectors
from models.outputs import Outputs
from models.uncertainty import Array, softmax, summarise

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What the first group of members and the image itself say.

    Attributes:
        finite: whether all outputs are finite; if not, the other fields mean nothing.
        probabilities: mean over these members of probabilities [K].
        scores: score of every OOD detector.
        p_values: p-value of every OOD detector.
    """

    finite: bool
    probabilities: Array
    scores: Mapping[str, float]
    p_values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one image.

    Attributes:
        logits: of the members that were asked, [n, K].
        finite: whether all outputs are finite; if not, the other fields mean nothing.
        probabilities: mean over these members of probabilities [K].
        entropies: predictive entropy, expected entropy and mutual information, in nats.
        look: at the image by the first of them.
    """

    logits: Floats
    finite: bool
    probabilities: Array
    entropies: tuple[float, float, float]
    look: FirstLook

    def member_probabilities(self) -> Array:
        """Probabilities [n, K] of each member by itself."""
        return softmax(self.logits)


def look(
    outputs: Outputs, pixels: Floats, detectors: Detectors, tests: Mapping[str, ConformalTest]
) -> list[FirstLook]:
    """The first look at each of B images.

    Args:
        outputs: of the first group of G members alone.
        pixels: grey values, [B, H, W].
        detectors: of the bundle.
        tests: of every detector.

    Outputs that are not finite are set to zero, so that nothing that is not a number leaves here;
    their images are marked.
    """
    finite = all_finite(outputs.logits) & all_finite(outputs.features)
    logits, features = (
        zero_unless(finite, values) for values in (outputs.logits, outputs.features)
    )
    prediction = summarise(logits)
    by_detector = detectors.scores(prediction, features, pixels)
    p_values = {name: tests[name].p_values(values).tolist() for name, values in by_detector.items()}
    raw = {name: values.tolist() for name, values in by_detector.items()}
    return [
        FirstLook(
            is_finite,
            prediction.probabilities[index],
            {name: values[index] for name, values in raw.items()},
            {name: values[index] for name, values in p_values.items()},
        )
        for index, is_finite in enumerate(finite.tolist())
    ]


def conclude(logits: Floats, looks: Sequence[FirstLook]) -> list[Evidence]:
    """The evidence on B images, from the logits [B, n, K] of the members that were asked."""
    finite = all_finite(logits)
    prediction = summarise(zero_unless(finite, logits))
    entropies = zip(
        prediction.predictive_entropy.tolist(),
        prediction.expected_entropy.tolist(),
        prediction.mutual_information.tolist(),
        strict=True,
    )
    return [
        Evidence(
            logits[index],
            is_finite and first.finite,
            prediction.probabilities[index],
            entropy,
            first,
        )
        for index, (is_finite, entropy, first) in enumerate(
            zip(finite.tolist(), entropies, looks, strict=True)
        )
    ]


def all_finite(values: Floats) -> NDArray[np.bool_]:
    """Whether all values [B, ...] of an image are finite, [B]."""
    return np.asarray(np.isfinite(values).all(axis=tuple(range(1, values.ndim))))


def zero_unless(finite: NDArray[np.bool_], values: Floats) -> Floats:
    """Values [B, ...], set to zero where an image's are not all finite."""
    if finite.all():
        return values
    shape = (-1, *(1,) * (values.ndim - 1))
    zeroed: Floats = np.where(finite.reshape(shape), values, np.float32(0))
    return zeroed
