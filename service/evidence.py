"""Outputs → what is known of each image, by the functions that calibrated the bundle."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.calibration import Calibration
from models.conformal import ConformalTest
from models.detectors import DETECTORS, Detectors
from models.outputs import Outputs
from models.policy import Policy
from models.uncertainty import Array, Prediction, softmax, summarise

Floats = NDArray[np.float32]
Entropies = tuple[float, float, float]


class FirstLook(NamedTuple):
    """What the first group of members and the image itself say.

    Attributes:
        finite: whether all outputs are finite; if not, the other fields mean nothing.
        probabilities: mean over these members of probabilities [K].
        entropies: predictive entropy, expected entropy and mutual information, in nats.
        scores: of the OOD detectors that were asked.
        p_values: theirs, over all calibration images.
    """

    finite: bool
    probabilities: Array
    entropies: Entropies
    scores: Mapping[str, float]
    p_values: Mapping[str, float]


class Evidence(NamedTuple):
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
    entropies: Entropies
    look: FirstLook

    def member_probabilities(self) -> Array:
        """Probabilities [n, K] of each member by itself."""
        return softmax(self.logits)


def look(
    outputs: Outputs,
    pixels: Floats,
    detectors: Detectors,
    tests: Mapping[str, ConformalTest],
    names: Collection[str] = DETECTORS,
) -> list[FirstLook]:
    """The first look at each of B images.

    Args:
        outputs: of the first group of G members alone.
        pixels: grey values, [B, H, W].
        detectors: of the bundle.
        tests: of every detector.
        names: of the detectors that are asked, those that one of them fuses included.

    Outputs that are not finite are set to zero, so that nothing that is not a number leaves here;
    their images are marked.
    """
    finite = all_finite(outputs.logits) & all_finite(outputs.features)
    logits, features = (
        zero_unless(finite, values) for values in (outputs.logits, outputs.features)
    )
    prediction = summarise(logits)
    scores = detectors.scores(prediction, features, pixels, names)
    p_values = {name: tests[name].p_values(values) for name, values in scores.items()}
    return [
        FirstLook._make(each)
        for each in zip(
            finite.tolist(),
            prediction.probabilities,
            _entropies(prediction),
            _by_image(scores),
            _by_image(p_values),
            strict=True,
        )
    ]


def conclude(logits: Floats, looks: Sequence[FirstLook]) -> list[Evidence]:
    """The evidence on B images, from the logits [B, n, K] of the members that were asked."""
    finite = all_finite(logits)
    prediction = summarise(zero_unless(finite, logits))
    return [
        Evidence(values, is_finite and first.finite, probabilities, entropies, first)
        for values, is_finite, probabilities, entropies, first in zip(
            logits,
            finite.tolist(),
            prediction.probabilities,
            _entropies(prediction),
            looks,
            strict=True,
        )
    ]


def conclude_first(logits: Floats, looks: Sequence[FirstLook]) -> list[Evidence]:
    """The same where no more than the first group was asked: all has been computed."""
    return [
        Evidence(values, first.finite, first.probabilities, first.entropies, first)
        for values, first in zip(logits, looks, strict=True)
    ]


def p_values_of(
    calibration: Calibration, policy: Policy, looks: Sequence[FirstLook]
) -> NDArray[np.float64]:
    """What a policy compares with its level, [B]."""
    detector = calibration.detector(policy)
    if policy.conditional_on is None:
        return np.array([each.p_values[detector] for each in looks])
    scores = np.array([each.scores[detector] for each in looks])
    classes = np.array([each.probabilities.argmax() for each in looks])
    return calibration.p_values(policy, scores, classes)


def _by_image(values: Mapping[str, Array]) -> Iterator[dict[str, float]]:
    """Of B images each, what is known of all by name."""
    rows = zip(*(each.tolist() for each in values.values()), strict=True)
    return (dict(zip(values, row, strict=True)) for row in rows)


def _entropies(prediction: Prediction) -> Iterator[Entropies]:
    return zip(
        prediction.predictive_entropy.tolist(),
        prediction.expected_entropy.tolist(),
        prediction.mutual_information.tolist(),
        strict=True,
    )


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
