"""Certificates of a tiny run, proved again from its bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models import bundle as bundles
from models.bundle import Bundle
from models.certificate import Certificate, certify
from models.manifest import CertificateSpec, DataSource, Manifest
from models.policy import Policy
from models.settling import serve
from models.uncertainty import Array
from training import data
from training.certify import (
    CertifyError,
    Proof,
    calibration_images,
    certify_policies,
    proof_table,
    prove_again,
)
from training.evaluate import Answers, Labels, gate
from training.pool import run_all
from training.recipe import CertifiedPolicy, Recipe, change
from training.run import Run
from training.settling import count_differing, sure_means

POLICIES: dict[str, dict[str, Any]] = {
    "default": {"alpha": 0.05, "target_risk": 0.05, "confidence": 0.9},
    "lenient": {"alpha": 0.01, "target_risk": 0.1, "confidence": 0.95, "members": "exact"},
    "swift": {
        "alpha": 0.05,
        "target_risk": 0.06,
        "confidence": 0.9,
        "members": "confident",
        "settled_at": 0.4,
    },
    "plain": {"alpha": 0.05, "min_probability": 0.7},
}
CERTIFIED = ["default", "lenient", "swift"]
AGREEMENT = {"rate": 0.1, "confidence": 0.9}


@pytest.fixture(scope="module")
def run(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a published bundle, three of whose four policies are certified."""
    path = tmp_path_factory.mktemp("run")
    run = Run.create(change(tiny, {"policies": POLICIES, "agreement": AGREEMENT}), path, path)
    run_all(run.recipe, path, path, 1, lambda step: None)
    run.diagnose()
    run.export()
    run.calibrate()
    run.evaluate()
    run.publish()
    return run


@pytest.fixture(scope="module")
def bundle(run: Run) -> Bundle:
    return bundles.load(run.published)


def test_policies_are_what_was_proved(run: Run, bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert run.certificates == manifest.certificates
    assert list(manifest.certificates) == CERTIFIED
    assert manifest.agreements == run.agreements
    assert manifest.policies["plain"] == Policy(alpha=0.05, min_probability=0.7)
    for name, certificate in manifest.certificates.items():
        policy = Policy(
            alpha=POLICIES[name]["alpha"],
            min_probability=certificate.threshold,
            members=POLICIES[name].get("members", "all"),
            settled_at=POLICIES[name].get("settled_at"),
        )
        assert manifest.policies[name] == policy
        assert certificate.target_risk == POLICIES[name]["target_risk"]
        assert certificate.confidence == POLICIES[name]["confidence"]
    assert set(manifest.results["test"]["policies"]) == set(POLICIES)


def test_the_gate_that_is_served_does_to_calibration_images_what_the_certificate_says(
    run: Run, bundle: Bundle
) -> None:
    held_out = run.problem.calibration
    answers = run._answers(held_out, run._ensemble(), bundle.detectors)
    for name in ("default", "lenient"):
        certificate = bundle.manifest.certificates[name]
        told = gate(
            answers.decide(bundle.calibration, bundle.manifest.policies[name]), held_out.labels
        )
        assert told["accepted"] == certificate.coverage
        assert told["error_among_accepted"] == certificate.errors / certificate.accepted


def test_both_gates_of_a_confident_policy_keep_what_its_certificate_promises(
    run: Run, bundle: Bundle
) -> None:
    """The one that is served and the one that asks all members, each by its own counts."""
    held_out, manifest = run.problem.calibration, bundle.manifest
    answers = run._answers(held_out, run._ensemble(), bundle.detectors)
    certificate, policy = manifest.certificates["swift"], manifest.policies["swift"]
    scores = answers.scores[manifest.calibration.score]
    levels = POLICIES["swift"]
    found = []
    for each in (policy, policy.model_copy(update={"members": "all", "settled_at": None})):
        decisions = answers.decide(bundle.calibration, each)
        served = serve(each, answers.totals, answers.group, np.zeros(len(scores), dtype=np.bool_))
        right = decisions.classes == held_out.labels
        proved = certify(
            served.probabilities.max(axis=1),
            right,
            scores,
            levels["alpha"],
            levels["target_risk"],
            levels["confidence"],
            certificate.threshold,
        )
        assert proved is not None
        assert proved.threshold == certificate.threshold
        assert proved.accepted == decisions.accepted.sum()
        assert proved.errors == (decisions.accepted & ~right).sum()
        assert proved.risk_bound <= certificate.risk_bound <= levels["target_risk"]
        found.append(proved)
    assert certificate.risk_bound == max(each.risk_bound for each in found)
    assert certificate.coverage_bound == min(each.coverage_bound for each in found)
    assert decisions.members.min() == 4
    assert manifest.agreements["swift"] == count_differing(policy, run.recipe.agreement, answers)
    assert manifest.agreements["swift"].mean_members < 4


def synthetic(agreeing: bool) -> tuple[Answers, Labels]:
    """Of 4,000 images of class 0 to two members; one in a hundred is hard, of which 40 % are wrong.

    The first member is sure of class 0 on a hard image, and the second agrees or not.
    """
    print("seed 9")
    rng = np.random.default_rng(9)
    easy = rng.uniform(0.5, 0.999, (4_000, 1)) * np.ones(2)
    hard = rng.random(4_000) < 0.01
    first = np.where(hard[:, None], [0.97, 0.97 if agreeing else 0.2], easy)
    probabilities = np.stack([first, 1 - first], axis=2)
    found = Answers.of(np.log(probabilities).astype(np.float32))
    wrong = rng.random(4_000) < np.where(hard, 0.4, 0.2 * (1 - easy[:, 0]))
    totals, scores = probabilities.cumsum(axis=1), {"energy": rng.random(4_000)}
    return replace(found, scores=scores, totals=totals, group=1), wrong.astype(np.int64)


@pytest.mark.parametrize("agreeing", [True, False])
def test_threshold_is_that_of_the_stricter_gate(agreeing: bool) -> None:
    answers, labels = synthetic(agreeing)
    levels = CertifiedPolicy(
        alpha=0.01, target_risk=0.04, confidence=0.9, members="confident", settled_at=0.96
    )
    plain = CertifiedPolicy(alpha=0.01, target_risk=0.04, confidence=0.9)
    early = sure_means(levels.policy(0.0), answers)

    def proved(gate: CertifiedPolicy, means: Array, floor: float = 0.0) -> Certificate:
        certificate = certify(
            means.max(axis=1),
            means.argmax(axis=1) == labels,
            answers.scores["energy"],
            gate.alpha,
            gate.target_risk,
            gate.confidence,
            floor,
        )
        assert certificate is not None
        return certificate

    gates = [proved(levels, early), proved(plain, answers.totals[:, -1] / 2)]
    found = certify_policies({"a": levels, "b": plain}, answers, labels, "energy")
    assert found["b"] == CertificateSpec.of(gates[1])
    strictest = max(each.threshold for each in gates)
    assert found["a"].threshold == strictest
    assert (gates[0].threshold == gates[1].threshold) is agreeing
    bounds = [
        proved(levels, means, strictest).risk_bound for means in (early, answers.totals[:, -1] / 2)
    ]
    assert found["a"].risk_bound == max(bounds) <= 0.04


def test_an_answer_that_settles_below_the_threshold_is_refused() -> None:
    answers, labels = synthetic(True)
    levels = {"alpha": 0.01, "target_risk": 0.04, "confidence": 0.9, "members": "confident"}
    high = CertifiedPolicy.model_validate({**levels, "settled_at": 0.96})
    threshold = certify_policies({"a": high}, answers, labels, "energy")["a"].threshold
    assert 0.5 < threshold < 0.96
    at = CertifiedPolicy.model_validate({**levels, "settled_at": threshold})
    assert certify_policies({"a": at}, answers, labels, "energy")["a"].threshold == threshold
    low = CertifiedPolicy.model_validate({**levels, "settled_at": threshold - 0.01})
    with pytest.raises(CertifyError, match=r"'a': settled_at is .*, below the proved"):
        certify_policies({"a": low}, answers, labels, "energy")


def test_agreement_that_promises_too_much(bundle: Bundle) -> None:
    agreement = bundle.manifest.agreements["swift"]
    assert agreement.differing > 0
    fewer = agreement.model_dump() | {"differing": agreement.differing - 1}
    with pytest.raises(CertifyError, match=rf"'swift': {agreement.differing} of 297 .*, not "):
        prove_again(with_manifest(bundle, agreements={"swift": fewer}), None, None, 1)


def test_calibration_scores_are_those_of_the_bundle_that_is_served(
    run: Run, bundle: Bundle
) -> None:
    answers = run._answers(run.problem.calibration, run._ensemble(), bundle.detectors)
    for name, test in bundle.calibration.tests.items():
        assert np.array_equal(np.sort(answers.scores[name]), test.scores)


def test_what_is_not_proved_is_refused_before_anything_is_written(run: Run) -> None:
    levels = {"alpha": 0.05, "target_risk": 0.001, "confidence": 0.9}
    bold = replace(run, recipe=change(run.recipe, {"policies": {"bold": levels}}))
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    with pytest.raises(
        CertifyError, match=r"'bold': 297 calibration images do not .* raise target"
    ):
        bold.calibrate()
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


def test_every_certificate_is_proved_again_from_the_bundle_alone(bundle: Bundle) -> None:
    proofs = prove_again(bundle, None, None, 1)
    assert list(proofs) == CERTIFIED
    for name, proof in proofs.items():
        assert proof.promised == bundle.manifest.certificates[name]
        assert proof.proved == proof.promised
        assert proof.holds


def with_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    content = bundle.manifest.model_dump() | changes
    return replace(bundle, manifest=Manifest.model_validate(content))


@pytest.mark.parametrize(
    ("changes", "still_proved"),
    [
        ({"errors": 0, "risk_bound": 0.03}, True),
        ({"risk_bound": 0.03}, True),
        ({"target_risk": 0.012, "risk_bound": 0.012, "errors": 0}, False),
        ({"confidence": 0.99999}, False),
        ({"accepted": 250}, True),
        ({"coverage_bound": 0.8}, True),
    ],
    ids=str,
)
def test_certificate_that_promises_too_much(
    bundle: Bundle, changes: dict[str, Any], still_proved: bool
) -> None:
    certificates = {"default": bundle.manifest.certificates["default"].model_dump() | changes}
    (proof,) = prove_again(with_manifest(bundle, certificates=certificates), None, None, 1).values()
    assert not proof.holds
    assert (proof.proved is not None) is still_proved


def test_threshold_that_promises_too_much(bundle: Bundle) -> None:
    """A more lenient gate than the one that was proved."""
    manifest = bundle.manifest
    certificate = manifest.certificates["default"].model_dump() | {"threshold": 0.1}
    policies = manifest.model_dump()["policies"]
    policies["default"]["min_probability"] = 0.1
    lenient = with_manifest(bundle, policies=policies, certificates={"default": certificate})
    assert not prove_again(lenient, None, None, 1)["default"].holds


def test_table_tells_promise_and_proof() -> None:
    values = {"target_risk": 0.1, "confidence": 0.9, "calibration_size": 90, "alpha": 0.05}
    counts = {"threshold": 0.5, "accepted": 80, "errors": 1}
    promised = CertificateSpec(**values, **counts, risk_bound=0.05, coverage_bound=0.8)
    better = promised.model_copy(update={"errors": 2})
    proofs = {
        "a": Proof(promised, promised),
        "b": Proof(promised, better),
        "c": Proof(promised, None),
    }
    columns = [list(column.cells) for column in proof_table(proofs).columns]
    assert columns[0] == ["a", "b", "proved:", "c", "proved:"]
    assert columns[1] == ["0.05"] * 4 + ["nothing"]
    assert columns[4][:4] == ["1", "1", "2", "1"]
    assert columns[7] == ["yes", "NO", "", "NO", ""]


def renamed(manifest: Manifest, role: str, **changes: Any) -> tuple[DataSource, ...]:
    return tuple(
        part.model_copy(update=changes) if part.role == role else part for part in manifest.data
    )


Change = Callable[[Manifest], dict[str, Any]]


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda m: {"certificates": {}}, CertifyError, "has no certificate"),
        (
            lambda m: {"data": renamed(m, "calibration", sha256="0" * 64)},
            CertifyError,
            "digits: .* other data",
        ),
        (
            lambda m: {"calibration": m.calibration.model_copy(update={"seed": 2})},
            CertifyError,
            "digits: .* other data",
        ),
        (
            lambda m: {"data": renamed(m, "validation", size=101)},
            CertifyError,
            "digits: .* other data",
        ),
        (
            lambda m: {"data": renamed(m, "validation", size=10**6)},
            data.DataError,
            "make them smaller",
        ),
        (
            lambda m: {"data": renamed(m, "calibration", name="train")},
            CertifyError,
            "train is no named data set: give its --folder",
        ),
        (
            lambda m: {"data": tuple(part for part in m.data if part.role != "validation")},
            CertifyError,
            "no part for validation",
        ),
    ],
)
def test_what_cannot_be_proved_again(
    bundle: Bundle, change: Change, error: type[Exception], reason: str
) -> None:
    changed = replace(bundle, manifest=bundle.manifest.model_copy(update=change(bundle.manifest)))
    with pytest.raises(error, match=reason) as caught:
        prove_again(changed, None, None, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda scores: scores + 0.01, "calibration.npz: mutual_information differs by 0.01"),
        (lambda scores: scores[1:], "calibration.npz: 296 scores of 297 images"),
    ],
)
def test_scores_that_are_not_those_of_the_images(
    bundle: Bundle, change: Callable[[np.ndarray], np.ndarray], reason: str
) -> None:
    score = bundle.manifest.calibration.score
    calibration = bundle.calibration
    test = replace(calibration.tests[score], scores=change(calibration.tests[score].scores))
    tests = {**calibration.tests, score: test}
    changed = replace(bundle, calibration=replace(calibration, tests=tests))
    with pytest.raises(CertifyError, match=reason):
        prove_again(changed, None, None, 1)


def test_calibration_images_of_a_folder(bundle: Bundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        target = tmp_path / "images" / "train" / name
        target.mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(target / f"{index}.png")
    whole = data.load_folder(tmp_path / "images" / "train")
    split = data.stratified_split(whole.labels, {"validation": 4, "calibration": 6}, 1)
    part = whole.select(split["calibration"])
    changes = {"name": "train", "size": 6, "sha256": part.sha256}
    manifest = bundle.manifest.model_copy(
        update={"data": renamed(bundle.manifest, "calibration", **changes)}
    )
    manifest = manifest.model_copy(update={"data": renamed(manifest, "validation", size=4)})
    found = calibration_images(manifest, None, tmp_path / "images")
    assert hashlib.sha256(found.images).digest() == hashlib.sha256(part.images).digest()
    with pytest.raises(data.DataError, match="nowhere"):
        calibration_images(manifest, None, tmp_path / "nowhere")
