"""Whether a variant answers as the one that is served, and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.engines.graphs import Floats
from models.bundle import Bundle
from models.calibration import Calibration
from models.outputs import Ensemble, Outputs
from models.policy import Policy
from models.preprocessing import grey
from training.evaluate import Answers, Decisions

GAIN = 0.95
"""Share of the served variant's time that a faster one may take."""


@dataclass(frozen=True)
class Parity:
    """How answers on n images differ from those of the variant that is served.

    Attributes:
        probability: largest |Δ| of a mean probability.
        labels: images with another label.
        accepted: images that one accepts and the other does not.
        flagged: images that one flags and the other does not.
    """

    probability: float
    labels: int
    accepted: int
    flagged: int

    @property
    def holds(self) -> bool:
        """Whether every decision, with its label, is the same."""
        return not (self.labels or self.accepted or self.flagged)


def answers(variant: Ensemble, images: Floats, bundle: Bundle, batch: int) -> Answers:
    """What a variant and the bundle's detectors say of prepared images, in batches."""
    outputs = [variant(images[first : first + batch]) for first in range(0, len(images), batch)]
    together = Outputs(
        np.concatenate([each.logits for each in outputs]),
        np.concatenate([each.features for each in outputs]),
    )
    return Answers.detected(together, grey(images, bundle.manifest.input), bundle.detectors)


def compare(served: Answers, other: Answers, calibration: Calibration, policy: Policy) -> Parity:
    """Answers on the same images beside those that are served, all members being asked."""
    one, two = (each.decide(calibration, policy.asking("all")) for each in (served, other))
    change = other.prediction.probabilities - served.prediction.probabilities
    return Parity(
        float(np.abs(change).max()),
        int((one.classes != two.classes).sum()),
        int((one.accepted != two.accepted).sum()),
        int((_flagged(one) != _flagged(two)).sum()),
    )


def verdict(parity: Parity, ratios: Mapping[int, float]) -> str:
    """Adopt a variant only if decisions hold and it is faster.

    Args:
        parity: with the variant that is served.
        ratios: its time ÷ that of the variant that is served, by images in a batch.
    """
    reasons = [] if parity.holds else ["decisions differ"]
    if slow := [str(batch) for batch, ratio in ratios.items() if ratio > GAIN]:
        reasons.append(f"no gain at batch {', '.join(slow)}")
    return f"no: {'; '.join(reasons)}" if reasons else "adopt"


def _flagged(decisions: Decisions) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array(["ood" in reasons for reasons in decisions.reasons])
