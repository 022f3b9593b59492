from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import special, stats

from models.uncertainty import entropy, softmax, summarise

Logits = NDArray[np.float64]

FIELDS = (
    "probabilities",
    "predictive_entropy",
    "expected_entropy",
    "mutual_information",
    "max_logit",
    "energy",
)

member_logits = arrays(
    np.float64,
    array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6).filter(lambda s: s[2] > 1),
    elements=st.one_of(st.floats(-30, 30), st.sampled_from([-1e4, -50.0, 0.0, 50.0, 1e4])),
)


def of(probabilities: list[list[list[float]]]) -> Logits:
    """Logits of member probabilities [B, M, K]."""
    return np.log(np.array(probabilities))


@given(logits=member_logits)
def test_entropies_and_probabilities_equal_those_of_scipy(logits: Logits) -> None:
    members = special.softmax(logits, axis=2)
    prediction = summarise(logits)
    expected = stats.entropy(members, axis=2).mean(axis=1)
    assert prediction.probabilities == pytest.approx(members.mean(axis=1), abs=1e-14)
    assert prediction.predictive_entropy == pytest.approx(
        stats.entropy(members.mean(axis=1), axis=1), abs=1e-12
    )
    assert prediction.expected_entropy == pytest.approx(expected, abs=1e-12)
    assert prediction.members == logits.shape[1]


@given(logits=member_logits)
def test_largest_logit_and_energy_equal_those_of_scipy(logits: Logits) -> None:
    prediction = summarise(logits)
    energy = -special.logsumexp(logits, axis=2).mean(axis=1)
    assert prediction.energy == pytest.approx(energy, rel=1e-12, abs=1e-11)
    assert prediction.max_logit == pytest.approx(logits.mean(axis=1).max(axis=1), abs=1e-11)
    assert np.all(-prediction.energy >= prediction.max_logit - 1e-11)


@given(logits=member_logits)
def test_uncertainty_splits_into_two_parts_that_are_never_negative(logits: Logits) -> None:
    prediction = summarise(logits)
    total = prediction.expected_entropy + prediction.mutual_information
    ceiling = math.log(min(logits.shape[1:]))
    assert total == pytest.approx(prediction.predictive_entropy, abs=1e-14)
    assert np.all(prediction.expected_entropy >= 0)
    assert np.all(prediction.mutual_information >= 0)
    assert np.all(prediction.mutual_information <= ceiling + 1e-12)
    assert np.all(prediction.predictive_entropy <= math.log(logits.shape[2]) + 1e-12)


@given(logits=member_logits)
def test_probabilities_sum_to_one_and_the_largest_is_at_least_one_in_k(logits: Logits) -> None:
    probabilities = summarise(logits).probabilities
    assert np.all(probabilities >= 0)
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-13)
    assert np.all(probabilities.max(axis=1) >= 1 / logits.shape[2] - 1e-15)


@given(logits=member_logits, seed=st.integers(0, 100))
def test_order_of_images_members_and_classes(logits: Logits, seed: int) -> None:
    """Images permute the answers, bit for bit; members change nothing, classes the columns."""
    before = summarise(logits)
    images, members, classes = (
        np.random.default_rng(seed).permutation(size) for size in logits.shape
    )
    moved = summarise(logits[images])
    for name in FIELDS:
        assert np.array_equal(getattr(moved, name), getattr(before, name)[images])
    reordered = summarise(logits[:, members][:, :, classes])
    assert reordered.probabilities == pytest.approx(before.probabilities[:, classes], abs=1e-14)
    assert reordered.mutual_information == pytest.approx(before.mutual_information, abs=1e-13)
    assert reordered.max_logit == pytest.approx(before.max_logit, abs=1e-11)
    assert reordered.energy == pytest.approx(before.energy, abs=1e-11)


@given(logits=member_logits, shift=st.floats(-20, 20))
def test_a_constant_added_to_the_logits_changes_no_probability(
    logits: Logits, shift: float
) -> None:
    """It raises the largest logit and lowers the energy: they know what the softmax forgets."""
    before, after = summarise(logits), summarise(logits + shift)
    assert after.probabilities == pytest.approx(before.probabilities, abs=1e-11)
    assert after.max_logit == pytest.approx(before.max_logit + shift, abs=1e-11)
    assert after.energy == pytest.approx(before.energy - shift, abs=1e-11)


def test_probabilities_are_averaged_and_not_logits() -> None:
    """Two of three members are for class 0; the third is so sure that its logits outvote them."""
    logits = of([[[0.9, 0.1], [0.9, 0.1], [1e-9, 1 - 1e-9]]])
    assert summarise(logits).probabilities == pytest.approx(np.array([[0.6, 0.4]]), abs=1e-6)
    assert special.softmax(logits.mean(axis=1)).argmax() == 1


def test_largest_logit_is_of_the_mean_and_energy_the_mean_of_the_members() -> None:
    logits = np.log([[[1.0, 2.0, 5.0], [4.0, 2.0, 2.0]]])
    prediction = summarise(logits)
    assert prediction.max_logit == pytest.approx([math.log(5 * 2) / 2])
    assert prediction.energy == pytest.approx([-math.log(8)])
    sure = summarise(np.log([[[1.0, 1.0], [9.0, 91.0]]]))
    assert sure.energy == pytest.approx([-(math.log(2) + math.log(100)) / 2])


def test_members_that_agree_and_members_that_contradict_each_other() -> None:
    agree = summarise(of([[[0.5, 0.5], [0.5, 0.5]]]))
    assert agree.predictive_entropy == pytest.approx(math.log(2))
    assert agree.mutual_information == pytest.approx(0, abs=1e-15)

    contradict = summarise(np.array([[[1e4, 0.0], [0.0, 1e4]]]))
    assert contradict.predictive_entropy == pytest.approx(math.log(2))
    assert contradict.expected_entropy == pytest.approx(0)
    assert contradict.mutual_information == pytest.approx(math.log(2))


def test_one_member_has_no_mutual_information() -> None:
    assert summarise(np.array([[[3.0, 1.0, -2.0]]])).mutual_information.tolist() == [0.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("logits", [[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4]])
def test_extreme_logits(logits: list[float], dtype: type[np.floating]) -> None:
    prediction = summarise(np.array([[logits, logits[::-1]]], dtype=dtype))
    for name in FIELDS:
        values = getattr(prediction, name)
        assert values.dtype == np.float64
        assert np.isfinite(values).all()


def test_not_a_number_stays_what_it_is_and_stays_with_its_image() -> None:
    prediction = summarise(np.array([[[np.nan, 0.0]], [[1.0, 0.0]]]))
    for name in FIELDS:
        values = getattr(prediction, name)
        assert np.isnan(values[0]).all()
        assert np.isfinite(values[1]).all()


def test_softmax_and_entropy_by_hand() -> None:
    assert softmax(np.log(np.array([1.0, 2.0, 5.0]))) == pytest.approx([0.125, 0.25, 0.625])
    assert entropy(np.array([1.0, 0.0])) == 0
    assert not math.copysign(1, entropy(np.array([1.0, 0.0]))) < 0
    assert entropy(np.full(8, 0.125)) == pytest.approx(math.log(8))
    assert entropy(np.array([0.5, 0.25, 0.25])) == pytest.approx(1.5 * math.log(2))


@pytest.mark.parametrize("members", [1, 2, 4, 32])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_an_image_is_the_same_to_the_bit_in_whatever_company(members: int, classes: int) -> None:
    randomness = np.random.default_rng(seed := 7)
    print("seed", seed)
    logits = randomness.normal(0, 4, (70, members, classes)).astype(np.float32)
    together = summarise(logits)
    for part in [slice(0, 1), slice(5, 7), slice(9, 42), slice(69, 70)]:
        apart = summarise(logits[part])
        for field in FIELDS:
            assert np.array_equal(getattr(apart, field), getattr(together, field)[part]), field


@given(logits=member_logits)
def test_a_single_member_does_not_disagree(logits: Logits) -> None:
    assert not summarise(logits[:, :1]).mutual_information.any()
