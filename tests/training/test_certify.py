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
from models.manifest import CertificateSpec, DataSource, Manifest
from models.policy import Policy
from training import data
from training.certify import (
    CertifyError,
    Proof,
    calibration_images,
    proof_table,
    prove_again,
)
from training.evaluate import gate
from training.pool import run_all
from training.recipe import Recipe, change
from training.run import Run

POLICIES = {
    "default": {"alpha": 0.05, "target_risk": 0.05, "confidence": 0.9},
    "lenient": {"alpha": 0.01, "target_risk": 0.1, "confidence": 0.95},
    "plain": {"alpha": 0.05, "min_probability": 0.7},
}


@pytest.fixture(scope="module")
def run(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a published bundle, two of whose three policies are certified."""
    path = tmp_path_factory.mktemp("run")
    run = Run.create(change(tiny, {"policies": POLICIES}), path, path)
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
    assert list(manifest.certificates) == ["default", "lenient"]
    assert manifest.policies["plain"] == Policy(alpha=0.05, min_probability=0.7)
    for name, certificate in manifest.certificates.items():
        policy = Policy(alpha=POLICIES[name]["alpha"], min_probability=certificate.threshold)
        assert manifest.policies[name] == policy
        assert certificate.target_risk == POLICIES[name]["target_risk"]
        assert certificate.confidence == POLICIES[name]["confidence"]
    assert set(manifest.results["test"]["policies"]) == set(POLICIES)


def test_the_gate_that_is_served_does_to_calibration_images_what_the_certificate_says(
    run: Run, bundle: Bundle
) -> None:
    held_out = run.problem.calibration
    answers = run._answers(held_out, run._ensemble(), bundle.detectors)
    for name, certificate in bundle.manifest.certificates.items():
        reasons = answers.reasons(bundle.calibration, bundle.manifest.policies[name])
        told = gate(reasons, answers, held_out.labels)
        assert told["accepted"] == certificate.coverage
        assert told["error_among_accepted"] == certificate.errors / certificate.accepted


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
    assert list(proofs) == ["default", "lenient"]
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
