"""Evidence → what a policy makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.conformal import benjamini_hochberg
from models.policy import Policy, Reason, reasons_to_abstain
from models.uncertainty import Array
from service.evidence import Evidence, p_values_of


class Judgement(NamedTuple):
    """What a policy makes of one image.

    Attributes:
        evidence: on the image.
        reasons: to abstain.
        p_value: that the flag was judged by, over all images or within the predicted class.
        level: of the flag, which is raised at p_value ≤ level.
        ranking: the K labels' numbers, the most probable first.
        inside: whether each label is in the prediction set, [K]; None if the bundle has no sets.
    """

    evidence: Evidence
    reasons: tuple[Reason, ...]
    p_value: float
    level: float
    ranking: Sequence[int]
    inside: Sequence[bool] | None


def judge(
    bundle: Bundle, policy: Policy, level: float, evidence: Sequence[Evidence]
) -> list[Judgement]:
    """Judge B ≥ 1 images, each by itself, with a flag of this level.

    An image whose evidence is not finite is uncertain.
    """
    probabilities = np.array([each.probabilities for each in evidence])
    p_values = _p_values(bundle, policy, evidence)
    reasons = reasons_to_abstain(policy, probabilities, p_values, level)
    rankings = np.argsort(-probabilities, axis=1, kind="stable").tolist()
    return [
        Judgement(each, why if each.finite else ("uncertain",), p_value, level, ranking, inside)
        for each, why, p_value, ranking, inside in zip(
            evidence, reasons, p_values.tolist(), rankings, _sets(bundle, evidence), strict=True
        )
    ]


def discovery_level(
    bundle: Bundle, policy: Policy, rate: float, evidence: Sequence[Evidence]
) -> float:
    """Level of a flag with this false-discovery rate among the B images of one request.

    An image whose evidence is not finite is no evidence for or against others.
    """
    return benjamini_hochberg(_p_values(bundle, policy, evidence), rate)


def _p_values(bundle: Bundle, policy: Policy, evidence: Sequence[Evidence]) -> Array:
    p_values = p_values_of(bundle.calibration, policy, [each.look for each in evidence])
    p_values[[not each.finite for each in evidence]] = np.nan
    return p_values


def _sets(bundle: Bundle, evidence: Sequence[Evidence]) -> Sequence[Sequence[bool] | None]:
    sets = bundle.manifest.prediction_sets
    if sets is None:
        return [None] * len(evidence)
    inside: NDArray[np.bool_] = sets.fitted.sets(
        np.array([each.look.probabilities for each in evidence])
    )
    rows: list[list[bool]] = inside.tolist()
    return rows
