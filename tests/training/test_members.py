from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.members import thin


def test_by_hand() -> None:
    members = thin(count=5, chains=2, samples=6, group=4)
    assert members.chains == (0, 1, 0, 1, 0)
    assert members.samples == (1, 2, 3, 5, 5)
    assert members.group == 4


@given(
    chains=st.integers(1, 12),
    samples=st.integers(1, 30),
    group=st.integers(1, 40),
    share=st.floats(0, 1),
)
def test_members_are_distinct_spread_and_balanced(
    chains: int, samples: int, group: int, share: float
) -> None:
    count = max(1, round(share * chains * samples))
    members = thin(count, chains, samples, group)
    pairs = list(zip(members.chains, members.samples, strict=True))
    assert len(set(pairs)) == len(pairs) == members.count == count
    assert members.group == min(group, count)
    assert set(members.chains[:chains]) == set(range(min(chains, count)))
    for chain in set(members.chains):
        chosen = [sample for index, sample in pairs if index == chain]
        gaps = {after - before for before, after in pairwise([-1, *chosen])}
        assert chosen[-1] == samples - 1
        assert chosen[0] >= 0
        assert max(gaps) - min(gaps) <= 1
        assert abs(len(chosen) - count / chains) < 1


def test_more_members_than_samples() -> None:
    with pytest.raises(ValueError, match="7 members exceed 2 chains × 3 samples"):
        thin(7, 2, 3, 1)
