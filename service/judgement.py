"""Evidence → what a policy makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.conformal import benjamini_hochberg
from models.policy import Policy, Reason, reasons_to_abstain
from service.evidence import Evidence, p_values_of


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a policy makes of one image.

    Attributes:
        evidence: on the image.
        reasons: to abstain.
        p_value: that the flag was judged by, over all images or within the predicted class.
        level: of the flag, which is raised at p_value ≤ level.
        inside: whether each label is in the prediction set, [K]; None if the bundle has no sets.
    """

    evidence: Evidence
    reasons: tuple[Reason, ...]
    p_value: float
    level: float
    inside: NDArray[np.bool_] | None


def judge(
    bundle: Bundle, policy: Policy, fdr: float | None, evidence: Sequence[Evidence]
) -> list[Judgement]:
    """Judge the B ≥ 1 images of one request, together if a false-discovery rate is asked for.

    An image whose evidence is not finite is uncertain, and no evidence for or against others.
    """
    calibration, sets = bundle.calibration, bundle.manifest.prediction_sets
    probabilities = np.stack([each.probabilities for each in evidence])
    first = np.stack([each.look.probabilities for each in evidence])
    p_values = p_values_of(calibration, policy, [each.look for each in evidence])
    p_values[[not each.finite for each in evidence]] = np.nan
    level = calibration.level(policy) if fdr is None else benjamini_hochberg(p_values, fdr)
    inside = [None] * len(evidence) if sets is None else sets.fitted.sets(first)
    reasons = reasons_to_abstain(policy, probabilities, p_values, level)
    return [
        Judgement(each, why if each.finite else ("uncertain",), p_value, level, row)
        for each, why, p_value, row in zip(
            evidence, reasons, p_values.tolist(), inside, strict=True
        )
    ]
