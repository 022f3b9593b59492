"""When is a decision settled before every member has been asked?

Members are asked in groups, and a policy looks at what they said at some of the groups' ends
(`stops`): all at none but the last; exact at the first, where flagged images leave, when those can
be accepted that get 0.96 of every member, and after five, six and seven eighths, but it can settle
nothing before more than half have answered; confident at the first, and whenever their number has
quadrupled. Few stops make for few steps, and steps with more images: who needs many members waits
less often, and the others less long.

Of M members n have answered, and S_k is the sum of their probabilities of class k; p̄ = S/M once
n = M. The flag is no part of this: it rests on the first group of members alone
(`models.detectors`), so a flagged image is settled when that group has answered. Of the others,
with the largest sum S_1 and the second S_2:

- exact: the other M − n members may say anything, and the label and the acceptance stay:
  S_1 − S_2 > M − n, and S_1 ≥ τ M (accepted) or S_1 + (M − n) < τ M (not accepted). No member adds
  less than 0 to S_1 nor more than 1 to any other sum, and its probabilities sum to 1: S_1 − S_2 can
  fall by one a member and no faster. The bound is tight for arbitrary members.
- confident: S_1/n ≥ a threshold t_n, of `settled_at`; or nothing can change the acceptance,
  whatever the label. The answer is S/n. Two members may agree by chance and sixteen do not, so t_n
  may fall with n. How often the decision differs from that of all members is counted on
  calibration images (`training.settling`).

An image that is settled as accepted has S_1/n ≥ τ, and one that is settled as not accepted has
S_1/n < τ: the mean over the n members decides as the mean over all would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models.policy import Policy
from models.uncertainty import Array

PLAIN = 0.96
"""What a member gives the label of an image that `exact` accepts at the first opportunity."""

SLACK = 1e-9
"""Far more than the rounding of sums over members, far less than what a policy can name."""


@lru_cache(maxsize=256)
def stops(policy: Policy, group: int, members: int) -> tuple[int, ...]:
    """After how many members, of M, a policy looks whether a decision is settled; the last is M.

    Args:
        policy: its members.
        group: members in a group, a divisor of M.
        members: M.
    """
    match policy.members:
        case "all":
            chosen: list[int] = []
        case "exact":
            plain = max(members // 2 + 1, policy.min_probability * members / PLAIN)
            first, *eighths = (
                math.ceil(seen / group) * group
                for seen in (plain, 5 * members / 8, 6 * members / 8, 7 * members / 8)
            )
            apart = (each for each in eighths if not 0 < first - each < members / 8)
            chosen = sorted({group, first, *apart})
        case "confident":
            chosen = [group << 2 * quadrupling for quadrupling in range(members.bit_length())]
    return (*(stop for stop in chosen if stop < members), members)


def sure_at(policy: Policy, group: int, seen: int) -> float:
    """t_n of a confident policy, at its stop after n = `seen` members in groups of `group`."""
    assert policy.settled_at is not None
    quadruplings = ((seen // group).bit_length() - 1) // 2
    return policy.settled_at[min(quadruplings, len(policy.settled_at) - 1)]


def settled(
    policy: Policy, totals: Array, seen: int, members: int, group: int
) -> NDArray[np.bool_]:
    """Whether the decisions on B unflagged images are settled, [B].

    Args:
        policy: its members, settled_at and min_probability.
        totals: sums of the first members' probabilities, [B, K].
        seen: n, the members that are summed.
        members: M.
        group: members in a group.
    """
    if seen == members:
        return np.ones(len(totals), dtype=np.bool_)
    if policy.members == "all":
        return np.zeros(len(totals), dtype=np.bool_)
    rest, needed = members - seen, policy.min_probability * members
    first = totals.max(axis=1)
    sure = np.zeros(len(totals), dtype=np.bool_)
    if policy.settled_at is not None:
        sure = first / seen >= sure_at(policy, group, seen)
    if rest >= max(seen, needed):  # whatever these say, the others can still change both
        return sure
    leads = first - np.partition(totals, -2, axis=1)[:, -2] > rest + SLACK
    accepted = first >= needed + SLACK
    refused = first + rest < needed - SLACK
    if policy.settled_at is not None:
        sure |= refused
    done: NDArray[np.bool_] = sure | (leads & (accepted | refused))
    return done


@dataclass(frozen=True)
class Served:
    """What a policy answers n images with.

    Attributes:
        probabilities: mean over the members that were asked, [n, K].
        members: how many these were, [n].
    """

    probabilities: Array
    members: NDArray[np.int64]


def serve(policy: Policy, totals: Array, group: int, flagged: NDArray[np.bool_]) -> Served:
    """Ask members until every decision is settled, as the service does.

    Args:
        policy: the policy.
        totals: sums of the probabilities of the first group, the first two and so on, [n, S, K].
        group: members in a group; there are M = S · group members.
        flagged: whether an image is flagged, [n].
    """
    count, steps = totals.shape[:2]
    members = np.full(count, steps * group, dtype=np.int64)
    open_ = np.ones(count, dtype=np.bool_)
    for seen in stops(policy, group, steps * group):
        done = settled(policy, totals[:, seen // group - 1], seen, steps * group, group)
        if policy.members != "all":
            done |= flagged
        members[open_ & done] = seen
        open_ &= ~done
    last = totals[np.arange(count), members // group - 1]
    return Served(last / members[:, None], members)
