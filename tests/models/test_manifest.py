from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from models.manifest import Check, Manifest, Members, Verdict


def test_survives_json(manifest: Manifest) -> None:
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_is_frozen(manifest: Manifest) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        manifest.name = "other"  # type: ignore[misc]


def test_largest_entropy(manifest: Manifest) -> None:
    assert manifest.maximum_entropy == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    "changes",
    [
        {"colour": 1},
        {"name": ""},
        {"name": "a/b"},
        {"name": ".hidden"},
        {"name": "a" * 65},
        {"version": "1 2"},
        {"name": "fake\n"},
        {"labels": ["one"]},
        {"schema_version": 0},
        {"policies": {}},
        {"policies": {"strict": {"alpha": 0.1, "min_probability": 0.5}}},
        {"files": {"a": "A" * 64}},
        {"posterior": {"num_data": 0, "temperature": 1, "prior_std": {}}},
        {"posterior": {"num_data": 1, "temperature": math.nan, "prior_std": {}}},
        {"calibration": {"size": 0, "seed": 1, "score": "x"}},
    ],
    ids=str,
)
def test_what_does_not_fit(manifest: Manifest, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate({**manifest.model_dump(), **changes})


@pytest.mark.parametrize(
    ("value", "low", "high", "passed"),
    [
        (1.0, 1.0, 1.0, True),
        (0.999, 1.0, None, False),
        (1.001, None, 1.0, False),
        (1.0, 0.9, 1.1, True),
        (-5.0, None, 0.0, True),
    ],
)
def test_check(value: float, low: float | None, high: float | None, passed: bool) -> None:
    assert Check(value=value, low=low, high=high).passed is passed


def test_check_without_a_bound_is_none() -> None:
    with pytest.raises(ValidationError, match="lower or an upper bound"):
        Check(value=1)


@pytest.mark.parametrize(
    ("low", "high", "accepted"),
    [(None, 1.1, "≤ 1.1"), (50, None, "≥ 50"), (0.9, 1.1, "0.9 to 1.1"), (1, 1, "1")],
)
def test_bounds_in_words(low: float | None, high: float | None, accepted: str) -> None:
    assert Check(value=1, low=low, high=high).accepted == accepted


def test_verdict_needs_checks_and_all_of_them() -> None:
    good, bad = Check(value=1, low=0), Check(value=1, high=0)
    assert Verdict(checks={"a": good}).verified
    assert not Verdict(checks={}).verified
    mixed = Verdict(checks={"a": good, "b": bad, "c": bad})
    assert not mixed.verified
    assert mixed.failed == ("b", "c")


@pytest.mark.parametrize(
    ("count", "chains", "samples"), [(2, (0,), (0, 1)), (2, (0, 1), (0,)), (1, (0, 1), (0, 1))]
)
def test_members_need_a_chain_and_a_sample_each(
    count: int, chains: tuple[int, ...], samples: tuple[int, ...]
) -> None:
    with pytest.raises(ValidationError, match="one chain and one sample each"):
        Members(count=count, group=1, chains=chains, samples=samples)
