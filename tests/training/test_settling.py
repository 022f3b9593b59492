from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from models.policy import Policy
from models.settling import serve
from training.evaluate import Answers
from training.recipe import Agreement
from training.settling import AgreementError, agree, count_differing, sure_means

Array = NDArray[np.float64]
SIZE = 5_000
ANY = Agreement(rate=0.999, confidence=0.9)


def confident(threshold: float, settled_at: float | tuple[float, ...] = 0.9) -> Policy:
    return Policy.model_validate(
        {
            "alpha": 0.01,
            "min_probability": threshold,
            "members": "confident",
            "settled_at": settled_at,
        }
    )


def answers(first: Array, group: int = 1) -> Answers:
    """Of members that give class 0 of two these probabilities, [n, M]."""
    probabilities = np.stack([first, 1 - first], axis=2)
    found = Answers.of(np.log(probabilities).astype(np.float32))
    totals = probabilities.cumsum(axis=1)[:, group - 1 :: group]
    return replace(found, totals=totals, group=group)


BY_HAND = np.array(
    [
        [0.99, 0.99, 0.99, 0.99, 0.9900],  # settles with one member, and all agree
        [0.99, 0.10, 0.10, 0.10, 0.3225],  # with one; all together take it for the other class
        [0.95, 0.50, 0.50, 0.50, 0.6125],  # with one; all together give it 0.6125
        [0.85, 0.99, 0.90, 0.90, 0.9100],  # with four
        [0.80, 0.85, 0.80, 0.80, 0.8125],  # never settles
        [0.20, 0.30, 0.20, 0.99, 0.4225],  # never settles: 0.5775 for the other class
    ]
)


@pytest.mark.parametrize(
    ("threshold", "differing"), [(0.0, 1), (0.6, 1), (0.61, 1), (0.62, 2), (0.9, 2)]
)
def test_images_that_differ_by_hand(threshold: float, differing: int) -> None:
    found = count_differing(confident(threshold), ANY, answers(BY_HAND))
    assert (found.calibration_size, found.differing, found.confidence) == (6, differing, 0.9)


def test_members_that_are_asked_by_hand() -> None:
    """After one, four and all five; after four, two are refused at 0.9: 3.25 + 1 < 4.5."""
    asked = {0.9: 1 + 1 + 1 + 4 + 4 + 4, 0.8: 1 + 1 + 1 + 4 + 5 + 4, 0.6: 1 + 1 + 1 + 4 + 4 + 5}
    for threshold, members in asked.items():
        found = count_differing(confident(threshold), ANY, answers(BY_HAND))
        assert found.mean_members == members / 6


def test_what_is_asked_for_falls_by_hand() -> None:
    """Four settle this image too, with 0.675; all together give it 0.58."""
    images = np.vstack([BY_HAND, [0.9, 0.6, 0.6, 0.6, 0.2]])
    found = count_differing(confident(0.62, (0.97, 0.65)), ANY, answers(images))
    assert found.differing == 2
    assert found.mean_members == (1 + 1 + 5 + 4 + 4 + 5 + 4) / 7
    found = count_differing(confident(0.62, (0.97, 0.68)), ANY, answers(images))
    assert found.differing == 1
    assert found.mean_members == (1 + 1 + 5 + 4 + 4 + 5 + 5) / 7


def test_images_settle_after_whole_groups() -> None:
    """Of two members each: the first image and the fourth are sure, the fifth alone is open."""
    found = count_differing(confident(0.9), ANY, answers(BY_HAND[:, :4], group=2))
    assert found.differing == 0
    assert found.mean_members == (2 + 2 + 2 + 2 + 4 + 2) / 6


def test_members_that_are_no_numbers_differ() -> None:
    """All together accept nothing, the first alone would."""
    given = answers(BY_HAND[[0, 0, 0]])
    given.totals[0, 1:] = np.nan
    assert count_differing(confident(0.5), ANY, given).differing == 1


@pytest.mark.parametrize(
    ("threshold", "settled_at"),
    [
        (0.0, 0.6),
        (0.72, 0.95),
        (0.8, 0.8),
        (0.9, 0.95),
        (0.95, 0.97),
        (0.72, (0.99, 0.95, 0.8)),
        (0.9, (0.97, 0.92)),
    ],
)
def test_sure_means_decide_as_the_service_does_at_any_threshold(
    threshold: float, settled_at: float | tuple[float, ...]
) -> None:
    """Where they accept an image, so does the service, and with the same label."""
    print("seed 4")
    given = random_answers(4)
    policy, nobody = confident(threshold, settled_at), np.zeros(SIZE, dtype=np.bool_)
    served = serve(policy, given.totals, given.group, nobody).probabilities
    own = sure_means(policy, given)
    accepted = own.max(axis=1) >= threshold
    assert np.array_equal(served.max(axis=1) >= threshold, accepted)
    assert np.array_equal(served.argmax(axis=1)[accepted], own.argmax(axis=1)[accepted])
    everyone = given.prediction.probabilities
    differ = (accepted != (everyone.max(axis=1) >= threshold)) | (
        accepted & (own.argmax(axis=1) != given.classes)
    )
    assert count_differing(policy, ANY, given).differing == differ.sum() > 0
    assert (served != own).any() == (threshold >= 0.8)


def random_answers(seed: int) -> Answers:
    """Sixteen members that agree more or less."""
    rng = np.random.default_rng(seed)
    centres, agreement = rng.uniform(0.02, 0.98, (SIZE, 1)), 10 ** rng.uniform(0, 2, (SIZE, 1))
    drawn = rng.beta(agreement * centres, agreement * (1 - centres), (SIZE, 16))
    return answers(drawn.clip(1e-6, 1 - 1e-6), group=2)


@pytest.mark.parametrize("settled_at", [0.8, (0.85, 0.8)], ids=str)
def test_the_higher_the_probability_that_is_asked_the_more_images_differ(
    settled_at: float | tuple[float, ...],
) -> None:
    """The bound of a certified policy rests on this: its τ comes from the same images."""
    print("seed 3")
    given = random_answers(3)
    found = [
        count_differing(confident(threshold, settled_at), ANY, given)
        for threshold in np.linspace(0, 0.8, 41)
    ]
    counts = [each.differing for each in found]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1]
    for each in found:
        bound = stats.beta.ppf(0.9, each.differing + 1, SIZE - each.differing)
        assert each.bound == pytest.approx(bound, rel=1e-9)


def test_confident_policies_are_proved_and_no_others() -> None:
    given = answers(np.repeat(BY_HAND, 100, axis=0))
    policies = {
        "all": Policy(alpha=0.01, min_probability=0.9),
        "exact": Policy(alpha=0.01, min_probability=0.9, members="exact"),
        "one": confident(0.6),
        "two": confident(0.9),
    }
    asked = Agreement(rate=0.5, confidence=0.99)
    assert agree(policies, asked, given) == {
        name: count_differing(policies[name], asked, given) for name in ("one", "two")
    }
    assert agree({"all": policies["all"]}, Agreement(), given) == {}


def test_agreement_that_is_not_proved() -> None:
    """1,200 images that all agree prove 0.4 %, and not 0.1 %."""
    given = answers(np.repeat(BY_HAND[:2], [1200, 0], axis=0))
    bound = 1 - 0.01 ** (1 / 1200)
    (proved,) = agree({"swift": confident(0.6)}, Agreement(rate=0.004), given).values()
    assert proved.bound == pytest.approx(bound)
    with pytest.raises(AgreementError) as caught:
        agree({"swift": confident(0.6)}, Agreement(), given)
    assert str(caught.value) == (
        "policy 'swift': 0 of 1,200 calibration images are decided otherwise than by all members, "
        "which does not prove a rate of 0.001 with confidence 0.99: raise settled_at, or "
        "agreement.rate, or hold out more calibration images"
    )


def test_the_bound_holds_for_as_many_calibration_sets_as_it_is_confident() -> None:
    """Images differ with rate r: the bound is below it with P(X ≤ k), X binomial, which is ≤ 1 − γ.

    k is the largest count whose bound is below r: here P(X ≤ k) is nearly 1 − γ itself. The number
    of R sets that break the promise is binomial: 4 standard errors of that probability.
    """
    seed, draws, size, rate, confidence = 20261123, 2_000, 500, 0.0107, 0.9
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    policy, kinds = confident(0.9), answers(BY_HAND[:2, :2])
    asked = Agreement(rate=0.999, confidence=confidence)
    broken = 0
    for row in (rng.random((draws, size)) < rate).astype(int):
        probabilities = kinds.prediction.probabilities[row]
        drawn = replace(kinds.prediction, probabilities=probabilities)
        given = replace(kinds, prediction=drawn, totals=kinds.totals[row])
        broken += count_differing(policy, asked, given).bound < rate
    below = [
        count for count in range(20) if stats.beta.ppf(confidence, count + 1, size - count) < rate
    ]
    expected = stats.binom.cdf(max(below), size, rate)
    assert 0.09 < expected <= 1 - confidence
    error = math.sqrt(expected * (1 - expected) / draws)
    assert abs(broken / draws - expected) < 4 * error
