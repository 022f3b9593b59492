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
ROUNDING = 1e-6
"""How much a mean probability may change by the order in which fp32 numbers are added up."""


@dataclass(frozen=True)
class Parity:
    """How answers on n images differ from those of the variant that is served.

    Attributes:
        probability: largest |Δ| of a mean probability.
        labels: images with another label.
        accepted: images that one accepts and the other does not.
        flagged: images that one flags and the other does not.
        company: largest |Δ| of a mean probability between an image alone and in a batch.
    """

    probability: float
    labels: int
    accepted: int
    flagged: int
    company: float

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


def compare(
    served: Answers, other: Answers, alone: Answers, calibration: Calibration, policy: Policy
) -> Parity:
    """Answers on the same images beside those that are served, all members being asked.

    Args:
        served: by the variant that is served.
        other: by another, in batches.
        alone: by the other, on the first of the images, one by one.
        calibration: of the bundle.
        policy: that decides.
    """
    one, two = (each.decide(calibration, policy.asking("all")) for each in (served, other))
    return Parity(
        _largest_change(served, other),
        int((one.classes != two.classes).sum()),
        int((one.accepted != two.accepted).sum()),
        int((_flagged(one) != _flagged(two)).sum()),
        _largest_change(alone, other),
    )


def verdict(parity: Parity, ratios: Mapping[str, float]) -> str:
    """Adopt a variant only if decisions hold, whatever else is in the batch, and it is faster.

    Args:
        parity: with the variant that is served.
        ratios: its time ÷ that of the variant that is served, by kind of batch.
    """
    reasons = [] if parity.holds else ["decisions differ"]
    if parity.company > ROUNDING:
        reasons.append("company changes answers")
    if slow := [kind for kind, ratio in ratios.items() if ratio > GAIN]:
        reasons.append(f"no gain at {', '.join(slow)}")
    return f"no: {'; '.join(reasons)}" if reasons else "adopt"


def _largest_change(one: Answers, other: Answers) -> float:
    """Of mean probabilities on the images that both have answered."""
    before, after = one.prediction.probabilities, other.prediction.probabilities
    count = min(len(before), len(after))
    return float(np.abs(after[:count] - before[:count]).max())


def _flagged(decisions: Decisions) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array(["ood" in reasons for reasons in decisions.reasons])
