from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.manifest import Members
from models.uncertainty import softmax, summarise
from training.agreement import total_variation
from training.members import Probabilities, curves, select, thin
from training.metrics import negative_log_likelihood


def test_by_hand() -> None:
    members = thin(count=5, chains=2, samples=6, group=5)
    assert members.chains == (0, 1, 0, 1, 0)
    assert members.samples == (1, 2, 3, 5, 5)
    assert members.group == 5


@given(
    chains=st.integers(1, 12),
    samples=st.integers(1, 30),
    share=st.floats(0, 1),
    data=st.data(),
)
def test_members_are_distinct_spread_and_balanced(
    chains: int, samples: int, share: float, data: st.DataObject
) -> None:
    count = max(1, round(share * chains * samples))
    divisors = [group for group in range(1, count + 1) if count % group == 0]
    group = data.draw(st.sampled_from([*divisors, count + 1]))
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


def test_members_that_are_no_whole_groups() -> None:
    with pytest.raises(ValueError, match="group 2 does not divide the 5 members"):
        thin(5, 2, 6, 2)
    with pytest.raises(ValueError, match="group 2 does not divide the 3 members"):
        select(3, shares(0.0, 0.5, 1.0), group=2)


def test_more_members_than_samples() -> None:
    with pytest.raises(ValueError, match="7 members exceed 2 chains × 3 samples"):
        thin(7, 2, 3, 1)


def shares(*values: float) -> Probabilities:
    """One chain of samples that give class 1 of 2 these probabilities, on one image."""
    return np.array([[[[1 - value, value]] for value in values]])


def random_samples(seed: int, chains: int, samples: int, images: int) -> Probabilities:
    logits = np.random.default_rng(seed).normal(0, 2, (chains, samples, images, 3))
    return softmax(logits)


def test_selection_by_hand() -> None:
    """The mean is 0.5: the middle first, then the earlier of two that are equally far from it."""
    members = select(3, shares(0.0, 0.5, 1.0), group=4)
    assert members.samples == (1, 0, 2)
    assert members.chains == (0, 0, 0)
    assert members.group == 3
    assert members.selection == "greedy"


def test_selection_follows_the_weights() -> None:
    weights = np.array([[1.0, 0.0, 3.0]])
    assert select(1, shares(0.0, 0.4, 0.9), 1, weights).samples == (2,)
    assert select(2, shares(0.0, 0.8, 1.0), 1, weights).samples == (1, 2)


def test_selection_takes_one_of_each_opinion() -> None:
    opinions = np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]].reshape(2, 6, 1, 4)
    members = select(4, opinions, 1)
    assert [(6 * c + s) % 4 for c, s in zip(members.chains, members.samples, strict=True)] == [
        0,
        1,
        2,
        3,
    ]


def test_every_step_is_the_best_one_as_counted_by_brute_force() -> None:
    probabilities = random_samples(3, 3, 5, 40)
    members = select(10, probabilities, 5)
    flat = probabilities.reshape(15, 40, 3)
    chosen = [5 * c + s for c, s in zip(members.chains, members.samples, strict=True)]
    for size in range(1, 11):
        distances = {
            index: total_variation(
                flat[[*chosen[: size - 1], index]].mean(axis=0), flat.mean(axis=0)
            )
            for index in range(15)
            if index not in chosen[: size - 1]
        }
        assert chosen[size - 1] == min(distances, key=lambda index: distances[index])
    assert len(set(chosen)) == 10


@given(count=st.integers(1, 12), seed=st.integers(0, 5))
def test_fewer_members_are_the_first_of_more(count: int, seed: int) -> None:
    probabilities = random_samples(seed, 3, 4, 5).astype(np.float32)
    some, every = select(count, probabilities, 1), select(12, probabilities, 4)
    assert (some.chains, some.samples) == (every.chains[:count], every.samples[:count])
    assert sorted(zip(every.chains, every.samples, strict=True)) == [
        (chain, sample) for chain in range(3) for sample in range(4)
    ]


def test_selection_of_more_members_than_samples() -> None:
    with pytest.raises(ValueError, match="4 members exceed 1 chains × 3 samples"):
        select(4, shares(0.1, 0.2, 0.3), 1)


def test_curves_are_those_of_the_members_predictions() -> None:
    probabilities, labels = random_samples(7, 3, 4, 50), np.arange(50) % 3
    members = select(6, probabilities[:, :, :25], 3)
    result = curves(probabilities[:, :, 25:], labels[25:], members)
    assert (result["images"], result["samples"], result["members"]) == (25, 12, [1, 2, 4, 6])
    logits = np.log(probabilities[:, :, 25:])
    mean = probabilities[:, :, 25:].mean(axis=(0, 1))
    for place, size in enumerate(result["members"]):
        for name, choice in (("served", members), ("thinned", thin(size, 3, 4, 1))):
            own = logits[choice.chains[:size], choice.samples[:size]]
            seen = summarise(own.transpose(1, 0, 2))
            expected = {
                "total_variation": total_variation(seen.probabilities, mean),
                "nll": negative_log_likelihood(seen.probabilities, labels[25:]),
                "predictive_entropy": seen.predictive_entropy.mean(),
                "mutual_information": seen.mutual_information.mean(),
            }
            for quantity, value in expected.items():
                assert result[name][quantity][place] == pytest.approx(value, abs=1e-12)
    everything = summarise(logits.reshape(12, 25, 3).transpose(1, 0, 2))
    assert result["all"]["total_variation"] == 0
    assert result["all"]["mutual_information"] == pytest.approx(
        everything.mutual_information.mean()
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_all_samples_are_at_no_distance_however_chosen() -> None:
    probabilities = random_samples(1, 2, 3, 20)
    result = curves(probabilities, np.zeros(20, np.int64), select(6, probabilities, 1))
    for name in ("served", "thinned", "random"):
        assert result[name]["total_variation"][-1] == pytest.approx(0, abs=1e-15)
        assert result[name]["nll"][-1] == pytest.approx(result["all"]["nll"])
    assert result["random"]["total_variation_std"][-1] == pytest.approx(0, abs=1e-15)


def test_weighted_curves_compare_with_the_weighted_mean() -> None:
    probabilities, weights = shares(0.0, 0.5, 1.0), np.array([[0.0, 1.0, 1.0]])
    members = select(1, probabilities, 1, weights)
    result = curves(probabilities, np.ones(1, np.int64), members, weights)
    assert result["all"]["nll"] == pytest.approx(-np.log(0.75))
    assert result["served"]["total_variation"] == [pytest.approx(0.25)]


def test_selection_beats_chance_on_images_that_it_did_not_see() -> None:
    """Samples that share a few traits: a choice of them by 300 images holds on 300 others."""
    print("seed 4")
    randomness = np.random.default_rng(4)
    traits, answers = randomness.normal(size=(4, 30, 5)), randomness.normal(size=(5, 600 * 3))
    probabilities = softmax((traits @ answers).reshape(4, 30, 600, 3))
    members = select(16, probabilities[:, :, :300], 4)
    result = curves(probabilities[:, :, 300:], np.zeros(300, np.int64), members)
    chance, spread = (np.array(result["random"][f"total_variation{end}"]) for end in ("", "_std"))
    assert (np.array(result["served"]["total_variation"])[1:] < (chance - 2 * spread)[1:]).all()


def test_members_of_older_bundles_were_thinned() -> None:
    stored = thin(2, 1, 2, 1).model_dump(exclude={"selection"})
    assert Members.model_validate(stored).selection == "thinned"
