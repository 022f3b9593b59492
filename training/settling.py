"""How often a confident policy decides otherwise than all members would: proved on held-out images.

An image is settled once the label's mean probability over n < M members is at least what
`settled_at` asks after n (`models.settling`; what is settled exactly never differs). The decision
then differs from that of all members if these give another label, or accept no label. (Whether the
image is flagged is the same either way.) The calibration images on which it would differ, flagged
or not, are counted, and the exact binomial bound (Clopper & Pearson 1934) of the rate must not
exceed what the recipe asks for.

A certified policy's τ was found on the same images. That does no harm: the images that differ at
one τ are among those that differ at any higher one, so the hypotheses "the rate at τ exceeds the
bound", tested from the lowest τ upwards and each at the full level, are a fixed sequence.
`settled_at` must not come from the calibration images.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.certificate import clopper_pearson_upper
from models.manifest import AgreementSpec
from models.policy import Policy
from models.settling import serve, stops, sure_at
from models.uncertainty import Array
from training.evaluate import Answers
from training.recipe import Agreement


class AgreementError(Exception):
    """A confident policy that may differ too often; the message says what would help."""


def agree(
    policies: Mapping[str, Policy], asked: Agreement, answers: Answers
) -> dict[str, AgreementSpec]:
    """What calibration images prove of every confident policy, by name.

    Args:
        policies: all policies.
        asked: the rate that they must keep, and the confidence.
        answers: on the n calibration images.

    Raises:
        AgreementError: the images do not prove it of a policy.
    """
    proved = {}
    for name, policy in policies.items():
        if policy.members == "confident":
            try:
                proved[name] = count_differing(policy, asked, answers)
            except AgreementError as error:
                raise AgreementError(f"policy {name!r}: {error}") from error
    return proved


def count_differing(policy: Policy, asked: Agreement, answers: Answers) -> AgreementSpec:
    """How often a confident policy differs on n images, and the bound of the rate.

    Raises:
        AgreementError: the bound exceeds what is asked.
    """
    assert policy.settled_at is not None
    size, steps = answers.totals.shape[:2]
    own, everyone = sure_means(policy, answers), answers.totals[:, -1]
    accepted = everyone.max(axis=1) / (answers.group * steps) >= policy.min_probability
    agrees = (own.argmax(axis=1) == everyone.argmax(axis=1)) & accepted
    differing = int(((own.max(axis=1) >= min(policy.settled_at)) & ~agrees).sum())
    bound = clopper_pearson_upper(differing, size, asked.confidence)
    if bound > asked.rate:
        raise AgreementError(
            f"{differing} of {size:,} calibration images are decided otherwise than by all "
            f"members, which does not prove a rate of {asked.rate:g} with confidence "
            f"{asked.confidence:g}: raise settled_at, or agreement.rate, or hold out more "
            "calibration images"
        )
    served = serve(policy, answers.totals, answers.group, np.zeros(size, dtype=np.bool_))
    return AgreementSpec(
        rate=asked.rate,
        confidence=asked.confidence,
        calibration_size=size,
        differing=differing,
        bound=bound,
        mean_members=float(served.members.mean()),
    )


def sure_means(policy: Policy, answers: Answers) -> Array:
    """The mean probabilities [n, K] by which a confident policy decides, at any τ ≤ `settled_at`.

    S/n of the first stop at which the label has what it asks; of all members if there is none.
    (What a policy settles for another reason, it decides as all members do: `models.settling`.)
    """
    group, (size, steps) = answers.group, answers.totals.shape[:2]
    looks = stops(policy, group, group * steps)
    seen = np.array(looks)
    means = answers.totals[:, seen // group - 1] / seen[:, None]
    sure = means.max(axis=2) >= [sure_at(policy, group, look) for look in looks]
    sure[:, -1] = True
    chosen: Array = means[np.arange(size), sure.argmax(axis=1)]
    return chosen
