from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from models.policy import Policy, decision, reasons_to_abstain

POLICY = Policy(alpha=0.05, min_probability=0.8)


def judge(probability: float, p_value: float, policy: Policy = POLICY) -> tuple[str, ...]:
    probabilities = np.array([[probability, 1 - probability]])
    (reasons,) = reasons_to_abstain(policy, probabilities, np.array([p_value]), policy.alpha)
    return reasons


@pytest.mark.parametrize(
    ("probability", "p_value", "reasons"),
    [
        (0.9, 0.5, ()),
        (0.9, 0.05, ("ood",)),
        (0.9, 0.0501, ()),
        (0.8, 0.5, ()),
        (0.7999, 0.5, ("uncertain",)),
        (0.2, 0.5, ()),
        (0.5, 0.01, ("ood", "uncertain")),
        (math.nan, 0.5, ("uncertain",)),
        (0.9, math.nan, ("ood",)),
        (math.nan, math.nan, ("ood", "uncertain")),
    ],
)
def test_reasons(probability: float, p_value: float, reasons: tuple[str, ...]) -> None:
    assert judge(probability, p_value) == reasons
    assert decision(judge(probability, p_value)) == ("abstain" if reasons else "accept")


def test_each_image_is_judged_by_itself() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.1, 0.9], [0.5, 0.5]])
    p_values = np.array([0.5, 0.5, 0.01, 0.01])
    assert reasons_to_abstain(POLICY, probabilities, p_values, 0.05) == [
        (),
        ("uncertain",),
        ("ood",),
        ("ood", "uncertain"),
    ]
    assert reasons_to_abstain(POLICY, probabilities[:0], p_values[:0], 0.05) == []


def test_flag_is_raised_at_alpha_itself() -> None:
    """P(p ≤ α) ≤ α is what is promised, so equality must flag: 1/20 at α = .05."""
    assert judge(0.9, 1 / 20) == ("ood",)
    assert judge(0.9, 2 / 20) == ()


def test_policy_that_asks_for_no_probability_accepts_any() -> None:
    lenient = Policy(alpha=0.05, min_probability=0)
    assert judge(0.5, 0.5, lenient) == ()
    assert judge(math.nan, 0.5, lenient) == ("uncertain",)


def test_flag_is_raised_at_the_level_in_use_not_at_alpha() -> None:
    probabilities, p_values = np.array([[0.9, 0.1]] * 3), np.array([0.01, 0.02, 0.05])
    assert reasons_to_abstain(POLICY, probabilities, p_values, 0.02) == [("ood",), ("ood",), ()]
    assert reasons_to_abstain(POLICY, probabilities, p_values, 0.0) == [(), (), ()]


def test_different_numbers_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        reasons_to_abstain(POLICY, np.full((2, 2), 0.5), np.array([0.5]), 0.05)


@pytest.mark.parametrize(
    "levels",
    [
        {"alpha": 0, "min_probability": 0.5},
        {"alpha": 1, "min_probability": 0.5},
        {"alpha": math.nan, "min_probability": 0.5},
        {"alpha": 0.1, "min_probability": 1},
        {"alpha": 0.1, "min_probability": -0.1},
        {"alpha": 0.1, "min_probability": math.nan},
        {"alpha": 0.1},
        {"alpha": 0.1, "min_probability": 0.5, "colour": 1},
        {"alpha": 0.1, "min_probability": 0.5, "alpha_confidence": 0},
        {"alpha": 0.1, "min_probability": 0.5, "alpha_confidence": 1},
        {"alpha": 0.1, "min_probability": 0.5, "alpha_confidence": math.nan},
        {"alpha": 0.1, "min_probability": 0.5, "conditional_on": "image"},
        {"alpha": 0.1, "min_probability": 0.5, "members": "some"},
        {"alpha": 0.1, "min_probability": 0.5, "members": "confident", "settled_at": 1},
        {"alpha": 0.1, "min_probability": 0.0, "members": "confident", "settled_at": 0},
        {"alpha": 0.1, "min_probability": 0.5, "members": "confident", "settled_at": math.nan},
        {"alpha": 0.1, "min_probability": 0.5, "members": "confident", "settled_at": []},
        {"alpha": 0.1, "min_probability": 0.5, "members": "confident", "settled_at": [0.9, 1]},
    ],
)
def test_levels_that_mean_nothing(levels: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate(levels)


def test_a_policy_makes_one_promise() -> None:
    levels = {"alpha": 0.1, "min_probability": 0.5, "conditional_on": "class"}
    assert Policy.model_validate(levels).conditional_on == "class"
    with pytest.raises(ValidationError, match="either alpha_confidence or conditional_on"):
        Policy.model_validate({**levels, "alpha_confidence": 0.9})


@pytest.mark.parametrize(
    "levels",
    [{"members": "confident"}, {"settled_at": 0.9}, {"members": "exact", "settled_at": 0.9}],
    ids=str,
)
def test_settled_at_goes_with_confident(levels: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="settled_at goes with members = confident"):
        Policy.model_validate({"alpha": 0.1, "min_probability": 0.5, **levels})


def test_an_answer_that_settles_is_one_that_is_accepted() -> None:
    levels = {"alpha": 0.1, "members": "confident", "settled_at": 0.9}
    assert Policy.model_validate({**levels, "min_probability": 0.9}).settled_at == (0.9,)
    several = levels | {"settled_at": [0.99, 0.9]}
    assert Policy.model_validate({**several, "min_probability": 0.9}).settled_at == (0.99, 0.9)
    for each in (levels, several):
        with pytest.raises(ValidationError, match="settled_at must not be below min_probability"):
            Policy.model_validate({**each, "min_probability": 0.901})
