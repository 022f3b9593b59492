from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.certificate import THRESHOLDS
from models.policy import Policy
from models.settling import serve, settled, stops, sure_at

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

EVERYONE = Policy(alpha=0.01, min_probability=0.9)


def exact(threshold: float) -> Policy:
    return Policy(alpha=0.01, min_probability=threshold, members="exact")


def confident(threshold: float, *settled_at: float) -> Policy:
    return Policy(alpha=0.01, min_probability=threshold, members="confident", settled_at=settled_at)


def decisions(policy: Policy, means: Array) -> tuple[NDArray[np.int64], Bools]:
    """Label and acceptance of mean probabilities [..., K], as the gate decides."""
    return means.argmax(axis=-1), means.max(axis=-1) >= policy.min_probability


def corners(totals: Array, rest: int) -> Array:
    """The sums [K, B, K] if the other members all are sure of one class, each of the K in turn.

    What keeps label and acceptance is a set of linear inequalities, and what the others may add is
    the simplex of these corners: what all corners keep, every completion keeps.
    """
    classes = totals.shape[1]
    return totals + rest * np.eye(classes)[:, None, :]


def changed(policy: Policy, totals: Array, finals: Array, seen: int, members: int) -> Bools:
    """Whether completions [..., B, K] are decided otherwise than S/n is, [..., B]."""
    labels, accepted = decisions(policy, totals / seen)
    final_labels, finally_accepted = decisions(policy, finals / members)
    return (final_labels != labels) | (finally_accepted != accepted)


def disagree(policy: Policy, finals: Array, members: int) -> Bools:
    """Whether two completions of [C, B, K] are decided differently, [B]."""
    labels, accepted = decisions(policy, finals / members)
    differ: Bools = (labels != labels[0]).any(axis=0) | (accepted != accepted[0]).any(axis=0)
    return differ


def near_a_tie(policy: Policy, totals: Array, seen: int, members: int) -> Bools:
    """Whether an inequality of the rule holds or fails by less than 1e-6, [B]."""
    rest, needed = members - seen, policy.min_probability * members
    second, first = np.sort(totals, axis=1)[:, -2:].T
    gaps = np.stack([first - second - rest, first - needed, first + rest - needed])
    near: Bools = (np.abs(gaps) < 1e-6).any(axis=0)
    return near


def test_what_is_settled_cannot_change_and_what_is_not_can() -> None:
    """A million sums of n of M members: every point of n times the simplex is one.

    Each is tried at its corners, which decide (`corners`), and at a random completion.
    """
    seed, size, rounds = 20261122, 5_000, 200
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    seen_of_each = np.zeros(3, dtype=np.int64)
    for _ in range(rounds):
        members, classes = int(rng.integers(2, 129)), int(rng.integers(2, 11))
        seen = int(rng.integers(1, members))
        policy = exact(float(rng.choice(THRESHOLDS)))
        sharpness = 10 ** rng.uniform(-2, 1)
        totals = seen * rng.dirichlet(np.full(classes, sharpness), size)
        done = settled(policy, totals, seen, members, 1)
        rest = members - seen
        finals = corners(totals, rest)
        assert not changed(policy, totals, finals, seen, members)[:, done].any()
        some = totals + rest * rng.dirichlet(np.full(classes, sharpness), size)
        assert not changed(policy, totals, some, seen, members)[done].any()
        far = ~near_a_tie(policy, totals, seen, members)
        assert disagree(policy, finals, members)[~done & far].all()
        accepted = decisions(policy, totals / seen)[1]
        seen_of_each += [(done & accepted).sum(), (done & ~accepted).sum(), (~done).sum()]
    assert seen_of_each.sum() == rounds * size
    assert (seen_of_each > 5_000).all()


gaps = st.one_of(
    st.just(0.0),
    st.floats(-15, 0).map(lambda power: 10**power),
    st.floats(-15, 0).map(lambda p: -(10**p)),
)


@given(
    members=st.integers(2, 128),
    classes=st.integers(2, 10),
    gap=gaps,
    shift=gaps,
    at=st.sampled_from(["label", "least", "most"]),
    data=st.data(),
)
def test_at_the_ties_themselves(
    members: int, classes: int, gap: float, shift: float, at: str, data: st.DataObject
) -> None:
    """First and second sums differ by M − n + `gap`, and τ lies `shift` beside a bound of S_1/M."""
    seen = data.draw(st.integers((members + 1) // 2, members - 1))
    rest = members - seen
    difference = min(max(rest + gap, 0.0), float(seen))
    totals = np.zeros((1, classes))
    first, second = data.draw(st.permutations(range(classes)))[:2]
    totals[0, [first, second]] = (seen + difference) / 2, (seen - difference) / 2
    largest = totals.max()
    bound = {
        "label": largest / seen,
        "least": largest / members,
        "most": (largest + rest) / members,
    }
    policy = exact(min(max(bound[at] + shift, 0.0), 0.9999))
    finals = corners(totals, rest)
    if settled(policy, totals, seen, members, 1)[0]:
        assert not changed(policy, totals, finals, seen, members).any()
    elif not near_a_tie(policy, totals, seen, members)[0]:
        assert disagree(policy, finals, members)[0]


@pytest.mark.parametrize(
    ("totals", "seen", "threshold", "expected"),
    [
        ((3.0, 0.0), 3, 0.0, True),  # 3 − 0 > 2, and 3 ≥ 0
        ((2.5, 0.5), 3, 0.0, False),  # 2.5 − 0.5 = 2: the others may make it 2.5 to 2.5
        ((3.0, 0.0), 3, 0.59, True),  # 3 ≥ 2.95
        ((3.0, 0.0), 3, 0.61, False),  # 3 < 3.05 ≤ 3 + 2
        ((3.0, 0.0), 3, 0.60000001, False),
        ((2.9, 0.1), 3, 0.98, False),  # 2.9 + 2 = 4.9
        ((2.9, 0.1), 3, 0.99, True),  # 4.9 < 4.95: refused, whatever comes
        ((0.1, 2.9), 3, 0.99, True),
        ((2.0, 2.0), 4, 0.99, False),  # refused, but the label is open
        ((2.0, 2.0), 5, 0.99, True),  # nobody is left
    ],
)
def test_exact_by_hand(
    totals: tuple[float, float], seen: int, threshold: float, expected: bool
) -> None:
    """Of five members."""
    assert settled(exact(threshold), np.array([totals]), seen, 5, 1).tolist() == [expected]


def test_all_are_asked_by_a_policy_of_all() -> None:
    totals = np.array([[4.0, 0.0], [2.0, 2.0]])
    assert not settled(EVERYONE, totals, 4, 5, 1).any()
    assert settled(EVERYONE, totals, 5, 5, 1).all()


def test_confident_by_hand() -> None:
    policy = confident(0.75, 0.875)
    totals = np.array([[3.5, 0.5, 0.0], [3.49, 0.51, 0.0], [0.0, 0.25, 3.75], [1.0, 1.0, 2.0]])
    assert settled(policy, totals, 4, 100, 1).tolist() == [True, False, True, False]
    assert settled(policy, totals, 4, 4, 1).all()


def test_what_makes_sure_changes_with_each_look() -> None:
    """Of a thousand members in groups of two, after 2, 8, 32 and 128."""
    policy, looks = confident(0.5, 0.9, 0.8, 0.6), (2, 8, 32, 128)
    asked = (0.9, 0.8, 0.6, 0.6)
    assert stops(policy, 2, 1000) == (*looks, 512, 1000)
    assert [sure_at(policy, 2, seen) for seen in looks] == list(asked)
    for seen, share in zip(looks, asked, strict=True):
        totals = seen * np.array([[share + 1e-6, 0.0], [share - 1e-6, 0.0]])
        assert settled(policy, totals, seen, 1000, 2).tolist() == [True, False]


@pytest.mark.parametrize(
    ("policy", "group", "members", "expected"),
    [
        (EVERYONE, 2, 32, (32,)),
        (exact(0.72), 2, 32, (2, 20, 24, 28, 32)),
        (exact(0.75), 2, 32, (2, 20, 26, 28, 32)),
        (exact(0.99), 2, 32, (2, 20, 24, 28, 32)),
        (exact(0.0), 4, 32, (4, 20, 24, 28, 32)),
        (exact(0.0), 2, 32, (2, 18, 20, 24, 28, 32)),
        (exact(0.72), 2, 128, (2, 80, 96, 112, 128)),
        (exact(0.2), 8, 32, (8, 24, 32)),
        (exact(0.72), 2, 10, (2, 8, 10)),
        (exact(0.72), 1, 5, (1, 4, 5)),
        (exact(0.72), 4, 4, (4,)),
        (confident(0.72, 0.9), 2, 32, (2, 8, 32)),
        (confident(0.72, 0.9), 4, 32, (4, 16, 32)),
        (confident(0.72, 0.9), 2, 128, (2, 8, 32, 128)),
        (confident(0.72, 0.9), 3, 3, (3,)),
    ],
    ids=str,
)
def test_when_a_policy_looks(
    policy: Policy, group: int, members: int, expected: tuple[int, ...]
) -> None:
    assert stops(policy, group, members) == expected


def test_confident_settles_what_is_exact_and_what_is_refused_whatever_its_label() -> None:
    """Of five: 2.6 − 0.4 > 2 and 2.6 ≥ 2.5; and 1.7 + 2 < 3.75, though the label is open."""
    policy = confident(0.5, 0.99)
    assert settled(policy, np.array([[2.6, 0.4], [2.4, 0.6]]), 3, 5, 1).tolist() == [True, False]
    policy = confident(0.75, 0.99)
    totals = np.array([[1.7, 1.3], [1.8, 1.2], [1.2, 1.8]])
    assert settled(policy, totals, 3, 5, 1).tolist() == [True, False, False]
    assert not settled(exact(0.75), totals, 3, 5, 1).any()


@given(seen=st.integers(1, 31), threshold=st.sampled_from(THRESHOLDS), seed=st.integers(0, 99))
def test_confident_keeps_the_acceptance_of_what_it_is_not_sure_of(
    seen: int, threshold: float, seed: int
) -> None:
    """No completion accepts what it refused; what it accepted without `settled_at` is exact."""
    policy = confident(threshold, 0.99995)
    totals = seen * np.random.default_rng(seed).dirichlet(np.full(4, 0.3), 200)
    done = settled(policy, totals, seen, 32, 1) & (totals.max(axis=1) / seen < 0.99995)
    _, now = decisions(policy, totals / seen)
    _, then = decisions(policy, corners(totals, 32 - seen) / 32)
    assert (then == now)[:, done].all()
    assert settled(exact(threshold), totals, seen, 32, 1)[done & now].all()


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.95, 0.968, 0.991, 0.992, 0.994, 0.995])
def test_what_settles_with_confidence_is_accepted(threshold: float) -> None:
    """At S_1 = τ n and one rounding beside it: no answer settles as one that is not given."""
    policy = confident(threshold, threshold)
    for seen in range(1, 128):
        largest = threshold * seen
        for first in (np.nextafter(largest, 0), largest, np.nextafter(largest, seen)):
            totals = np.array([[first, seen - first]])
            done = settled(policy, totals, seen, 128, 1)
            assert done.tolist() == decisions(policy, totals / seen)[1].tolist()


@pytest.mark.parametrize("policy", [exact(0.0), exact(0.9), confident(0.0, 0.1)], ids=str)
@pytest.mark.parametrize("missing", [(0, 0), (0, 1), slice(None)], ids=str)
def test_what_is_not_a_number_never_settles(
    policy: Policy, missing: tuple[int, int] | slice
) -> None:
    totals = np.array([[[15.0, 0.0, 0.0], [16.0, 0.0, 0.0]]])
    assert settled(policy, totals[:, 0], 15, 16, 1).all()
    totals[0][missing] = np.nan
    totals = totals.cumsum(axis=1)
    assert not settled(policy, totals[:, 0], 15, 16, 1).any()
    assert settled(policy, totals[:, 1], 16, 16, 1).all()
    served = serve(policy, totals, 8, np.array([False]))
    assert served.members.tolist() == [16]
    assert np.isnan(served.probabilities).any()


def draw(seed: int, images: int, members: int, classes: int) -> Array:
    """Member probabilities [B, M, K], of images about which members agree more or less."""
    rng = np.random.default_rng(seed)
    centres = rng.dirichlet(np.full(classes, 0.2), images) + 1e-3
    agreement = 10 ** rng.uniform(-0.5, 3, images)
    drawn = rng.gamma((agreement[:, None] * centres)[:, None, :], size=(images, members, classes))
    drawn += 1e-12
    result: Array = drawn / drawn.sum(axis=2, keepdims=True)
    return result


def sums(probabilities: Array, group: int) -> Array:
    """Of the first group, the first two and so on, [B, M / G, K]."""
    totals: Array = probabilities.cumsum(axis=1)[:, group - 1 :: group]
    return totals


def looks(policy: Policy, group: int, count: int, seen: int) -> bool:
    """Whether the policy looks after so many of `count` members."""
    if policy.members == "all" or seen == count:
        return seen == count
    if policy.members == "exact":
        parts = [len(range(0, part * count, 8 * group)) for part in (5, 6, 7)]
        plain = max(count // 2 + 1, policy.min_probability * count / 0.96)
        first = math.ceil(plain / group)
        near = [part for part in parts if 0 < (first - part) * group < count / 8]
        return seen // group in {1, first, *parts} - {*near}
    return seen // group in (1, 4, 16, 64)


def by_hand(policy: Policy, members: Array, group: int, flagged: bool) -> tuple[list[float], int]:
    """One image [M, K]: the mean of the members that are asked, and how many these are."""
    count = len(members)
    for seen in filter(partial(looks, policy, group, count), range(group, count + 1, group)):
        columns = [math.fsum(column) for column in members[:seen].T]
        *_, second, first = sorted(columns)
        rest = count - seen
        accepted = first >= policy.min_probability * count
        refused = first + rest < policy.min_probability * count
        done = first - second > rest and (accepted or refused)
        if policy.settled_at is not None:
            turn = [1, 4, 16, 64].index(seen // group) if rest else -1
            asked = [*policy.settled_at, *policy.settled_at[-1:] * turn][turn]
            done = done or refused or first / seen >= asked
        done = policy.members != "all" and (done or flagged)
        if done or not rest:
            return [column / seen for column in columns], seen
    raise AssertionError


POLICIES = [
    EVERYONE,
    exact(0.9),
    exact(0.3),
    exact(0.99),
    confident(0.7, 0.7),
    confident(0.5, 0.99),
    confident(0.5, 0.99, 0.9, 0.6),
    confident(0.2, 0.9, 0.99, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize(("members", "group", "classes"), [(12, 1, 2), (32, 4, 10), (9, 9, 3)])
def test_serving_is_a_loop_over_groups(
    policy: Policy, members: int, group: int, classes: int
) -> None:
    print("seed 5")
    probabilities = draw(5, 200, members, classes)
    flagged = np.arange(200) % 10 == 0
    served = serve(policy, sums(probabilities, group), group, flagged)
    expected = [
        by_hand(policy, one, group, bool(flag))
        for one, flag in zip(probabilities, flagged, strict=True)
    ]
    assert served.members.tolist() == [asked for _, asked in expected]
    assert served.probabilities == pytest.approx(np.array([mean for mean, _ in expected]))
    if policy.members == "all" or group == members:
        assert (served.members == members).all()
    else:
        assert (served.members[flagged] == group).all()
        assert len(np.unique(served.members[~flagged])) > 1


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 0.975, 0.999])
@pytest.mark.parametrize(("members", "group"), [(2, 1), (32, 4), (128, 8)])
def test_exact_decides_as_all_members_do_with_fewer(
    threshold: float, members: int, group: int
) -> None:
    print("seed 6")
    policy, nobody = exact(threshold), np.zeros(2_000, dtype=np.bool_)
    totals = sums(draw(6, 2_000, members, 5), group)
    served = serve(policy, totals, group, nobody)
    everyone = serve(EVERYONE, totals, group, nobody)
    assert (everyone.members == members).all()
    assert np.array_equal(everyone.probabilities, totals[:, -1] / members)
    for mine, theirs in zip(
        decisions(policy, served.probabilities),
        decisions(policy, everyone.probabilities),
        strict=True,
    ):
        assert np.array_equal(mine, theirs)
    if members > 2:
        assert served.members.mean() < 0.95 * members
