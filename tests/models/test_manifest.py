from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from models.certificate import Certificate
from models.manifest import AgreementSpec, CertificateSpec, Check, Manifest, Members, Verdict
from models.policy import Policy
from models.prediction_sets import PredictionSets, aps

SETS = {"score": "aps", "coverage": 0.8, "calibration_size": 5, "threshold": 0.25}


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
        {"schema_version": 2},
        {"policies": {}},
        {"policies": {"strict": {"alpha": 0.1, "min_probability": 0.5}}},
        {"files": {"a": "A" * 64}},
        {"posterior": {"num_data": 0, "temperature": 1, "prior_std": {}}},
        {"posterior": {"num_data": 1, "temperature": math.nan, "prior_std": {}}},
        {"certificates": {"default": {}}},
        {"calibration": {"size": 0, "seed": 1, "score": "x"}},
        {"prediction_sets": {"score": "lac", "coverage": 0.9}},
        {"prediction_sets": {**SETS, "threshold": math.inf}},
        {"prediction_sets": {**SETS, "calibration_size": 6}},
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


@pytest.mark.parametrize(("count", "group"), [(3, 2), (2, 3), (4, 3), (6, 4)])
def test_members_come_in_whole_groups(count: int, group: int) -> None:
    each = tuple(range(count))
    with pytest.raises(ValidationError, match=f"group {group} does not divide the {count} members"):
        Members(count=count, group=group, chains=(0,) * count, samples=each)
    for divisor in (1, count):
        whole = Members(count=count, group=divisor, chains=(0,) * count, samples=each)
        assert whole.group == divisor


def test_prediction_sets_are_kept_as_they_were_fitted(manifest: Manifest) -> None:
    assert manifest.prediction_sets is None
    content = {**manifest.model_dump(), "prediction_sets": SETS}
    read = Manifest.model_validate_json(Manifest.model_validate(content).model_dump_json())
    assert read.prediction_sets is not None
    assert read.prediction_sets.model_dump() == SETS
    assert read.prediction_sets.fitted == PredictionSets(aps, 0.8, 5, 0.25)


PROVED = {
    "target_risk": 0.5,
    "confidence": 0.6,
    "calibration_size": 5,
    "alpha": 0.01,
    "threshold": 0.9,
    "accepted": 4,
    "errors": 1,
    "risk_bound": 0.4,
    "coverage_bound": 0.2,
}


def test_certificate_is_kept_as_it_was_proved(manifest: Manifest) -> None:
    record = CertificateSpec.of(Certificate(**PROVED))
    assert record.model_dump() == PROVED
    assert record.coverage == 0.8
    assert manifest.certificates == {}
    certified = Manifest.model_validate(
        {**manifest.model_dump(), "certificates": {"default": PROVED}}
    )
    assert certified.certificates == {"default": record}
    assert Manifest.model_validate_json(certified.model_dump_json()) == certified


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("other", {}, "of no policy of that name and levels"),
        ("default", {"alpha": 0.02}, "of no policy of that name and levels"),
        ("default", {"threshold": 0.8}, "of no policy of that name and levels"),
        ("default", {"calibration_size": 6}, "another number of calibration images"),
        ("default", {"errors": 5}, "errors exceed accepted"),
        ("default", {"accepted": 6}, "accepted exceeds calibration_size"),
        ("default", {"risk_bound": 0.2}, "risk_bound must lie between"),
        ("default", {"risk_bound": 0.6}, "risk_bound must lie between"),
        ("default", {"coverage_bound": 0.9}, "coverage_bound exceeds"),
        ("default", {"target_risk": 1.0}, "less than 1"),
        ("default", {"confidence": 1.0}, "less than 1"),
        ("default", {"coverage_bound": math.nan}, "finite number"),
    ],
)
def test_certificate_that_does_not_fit(
    manifest: Manifest, name: str, changes: dict[str, Any], reason: str
) -> None:
    content = {**manifest.model_dump(), "certificates": {name: {**PROVED, **changes}}}
    with pytest.raises(ValidationError, match=reason):
        Manifest.model_validate(content)


LEVELS = {"alpha": 0.01, "min_probability": 0.9}
EXACT = {**LEVELS, "members": "exact"}
CONFIDENT = {**LEVELS, "members": "confident", "settled_at": 0.95}
AGREED = {
    "rate": 0.7,
    "calibration_size": 5,
    "differing": 1,
    "confidence": 0.9,
    "bound": 0.6,
    "mean_members": 2.4,
}


@pytest.mark.parametrize("members", [{}, {"members": "exact"}, CONFIDENT], ids=str)
def test_certificate_holds_for_its_levels_however_many_members_are_asked(
    manifest: Manifest, members: dict[str, Any]
) -> None:
    certificate = CertificateSpec.model_validate(PROVED)
    assert certificate.holds_for(Policy.model_validate({**LEVELS, **members}))
    others: list[dict[str, Any]] = [
        {"alpha": 0.02},
        {"min_probability": 0.8},
        {"score": "energy"},
        {"alpha_confidence": 0.9},
        {"conditional_on": "class"},
    ]
    for other in others:
        assert not certificate.holds_for(Policy.model_validate({**LEVELS, **members, **other}))
    content = manifest.model_dump() | {"policies": {"default": {**LEVELS, **members}}}
    content["agreements"] = {"default": AGREED} if members == CONFIDENT else {}
    content["certificates"] = {"default": PROVED}
    assert Manifest.model_validate(content).certificates == {"default": certificate}


def test_agreement_is_kept_as_it_was_proved(manifest: Manifest) -> None:
    assert manifest.agreements == {}
    content = manifest.model_dump() | {"policies": {"default": CONFIDENT, "exact": EXACT}}
    agreed = Manifest.model_validate({**content, "agreements": {"default": AGREED}})
    assert agreed.agreements == {"default": AgreementSpec.model_validate(AGREED)}
    assert agreed.agreements["default"].model_dump() == AGREED
    assert Manifest.model_validate_json(agreed.model_dump_json()) == agreed


@pytest.mark.parametrize(
    ("agreements", "reason"),
    [
        ({}, "agreements must be of the policies with members = confident"),
        ({"exact": AGREED}, "agreements must be of the policies with members = confident"),
        ({"default": AGREED, "exact": AGREED}, "agreements must be of the policies with members"),
        ({"default": AGREED, "other": AGREED}, "agreements must be of the policies with members"),
        ({"default": {**AGREED, "calibration_size": 6}}, "another number of calibration images"),
        ({"default": {**AGREED, "bound": 0.19}}, "bound must lie between differing / calibration"),
        ({"default": {**AGREED, "rate": 0.59}}, "bound must lie between differing / calibration"),
        ({"default": {**AGREED, "bound": 0.0}}, "greater than 0"),
        ({"default": {**AGREED, "bound": math.nan}}, "finite number"),
        ({"default": {**AGREED, "differing": -1}}, "greater than or equal to 0"),
        ({"default": {**AGREED, "confidence": 1.0}}, "less than 1"),
        ({"default": {**AGREED, "mean_members": 0.0}}, "greater than 0"),
    ],
)
def test_agreements_that_do_not_fit(
    manifest: Manifest, agreements: dict[str, Any], reason: str
) -> None:
    content = manifest.model_dump() | {"policies": {"default": CONFIDENT, "exact": EXACT}}
    with pytest.raises(ValidationError, match=reason):
        Manifest.model_validate({**content, "agreements": agreements})
