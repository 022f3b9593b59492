"""Certificates: proved on the calibration images of a run, and proved again from a bundle and data.

A bundle does not hold its calibration images. Its manifest names their data set, the seed and sizes
of the split that held them out, and their sha256: whoever has the data can repeat the proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import numpy as np
from rich.table import Table

from models.bundle import CALIBRATION, GRAPH, Bundle
from models.certificate import Certificate, certify
from models.conformal import ConformalTest
from models.manifest import CertificateSpec, DataSource, Manifest, Role
from models.uncertainty import Array
from training import data, export
from training.data import Dataset
from training.evaluate import Answers, Labels
from training.problem import hold_out
from training.recipe import Agreement, CertifiedPolicy, Levels
from training.settling import AgreementError, count_differing, sure_means

TOLERANCE = 1e-3
"""Of a score, relative where it exceeds 1; processors round differently."""


class CertifyError(Exception):
    """Nothing can be proved, or not with these data; the message says why."""


@dataclass(frozen=True)
class Proof:
    """A certificate of a bundle, and what its calibration images prove now.

    Attributes:
        promised: as the manifest has it.
        proved: with the same α, r* and confidence; None if nothing is proved.
    """

    promised: CertificateSpec
    proved: CertificateSpec | None

    @property
    def holds(self) -> bool:
        """Whether threshold, counts and bounds are the same, up to the rounding of a logarithm."""
        if self.proved is None:
            return False
        promised, proved = self.promised.model_dump(), self.proved.model_dump()
        return bool(np.allclose(list(promised.values()), list(proved.values()), rtol=1e-9, atol=0))


def certify_policies(
    policies: Mapping[str, Levels], answers: Answers, labels: Labels, score: str
) -> dict[str, CertificateSpec]:
    """A certificate for each policy that asks for one.

    That of a confident policy is proved of two gates, the one that is served and the one that asks
    all members: of both it promises what the worse one keeps.

    Args:
        policies: of the recipe.
        answers: on the calibration images.
        labels: theirs, [n].
        score: the detector that raises the flag.

    Raises:
        CertifyError: the images do not prove what a policy asks for.
    """
    certificates = {}
    for name, levels in policies.items():
        if not isinstance(levels, CertifiedPolicy):
            continue
        try:
            proved = _prove(levels, answers, labels, score)
        except CertifyError as error:
            raise CertifyError(f"policy {name!r}: {error}") from error
        if proved is None:
            raise CertifyError(
                f"policy {name!r}: {len(labels):,} calibration images do not prove an error rate "
                f"of {levels.target_risk:g} with confidence {levels.confidence:g}: raise "
                "target_risk, lower confidence, or hold out more calibration images"
            )
        certificates[name] = proved
    return certificates


def prove_again(
    bundle: Bundle, data_dir: Path | None, folder: Path | None, threads: int
) -> dict[str, Proof]:
    """Prove the certificates of a bundle again, by policy.

    Args:
        bundle: a bundle, verified.
        data_dir: where named data sets are looked for.
        folder: of the recipe's data, if it named a folder.
        threads: of onnxruntime.

    Raises:
        CertifyError: the bundle has no certificates, the images are not those it was calibrated
            on, or it scores them otherwise than it was calibrated.
        training.data.DataError: the images cannot be read.
    """
    manifest = bundle.manifest
    if not manifest.certificates:
        raise CertifyError(f"{bundle.path}: has no certificate: its recipe asked for none")
    held_out = calibration_images(manifest, data_dir, folder)
    ensemble = export.open_ensemble(bundle.path / GRAPH, manifest.members.group, threads)
    answers = Answers.seen(held_out.images, manifest.input, ensemble, bundle.detectors)
    score = manifest.calibration.score
    _check_scores(bundle, score, answers.scores[score])
    _check_agreements(manifest, answers)

    def again(name: str, promised: CertificateSpec) -> Proof:
        policy = manifest.policies[name]
        levels = CertifiedPolicy(
            alpha=promised.alpha,
            target_risk=promised.target_risk,
            confidence=promised.confidence,
            members=policy.members,
            settled_at=policy.settled_at,
        )
        return Proof(promised, _prove(levels, answers, held_out.labels, score))

    return {name: again(name, promised) for name, promised in manifest.certificates.items()}


def calibration_images(manifest: Manifest, data_dir: Path | None, folder: Path | None) -> Dataset:
    """The images on which a bundle was calibrated, split off as `training.problem` does it.

    Raises:
        CertifyError: the manifest does not say which they are, or the data are others.
        training.data.DataError: the images cannot be read.
    """
    validation, calibration = _part(manifest, "validation"), _part(manifest, "calibration")
    if folder is not None:
        whole = data.load_folder(folder / "train", manifest.input.channels)
    elif calibration.name in data.names():
        whole = data.load(calibration.name, "train", data_dir)
    else:
        raise CertifyError(f"{calibration.name} is no named data set: give its --folder")
    parts = hold_out(whole, validation.size, calibration.size, manifest.calibration.seed)
    held_out = parts["calibration"]
    if held_out.sha256 != calibration.sha256:
        raise CertifyError(
            f"{whole.name}: its calibration images have sha256 {held_out.sha256}, those of the "
            f"bundle have {calibration.sha256}: these are other data"
        )
    return held_out


def proof_table(proofs: Mapping[str, Proof]) -> Table:
    """What is promised, and below it what is proved where that differs."""
    columns = ("policy", "α", "threshold", "accepted", "errors", "risk ≤", "coverage ≥", "holds")
    result = Table(*columns)
    for name, proof in proofs.items():
        result.add_row(name, *_cells(proof.promised), "yes" if proof.holds else "NO")
        if not proof.holds:
            result.add_row("proved:", *_cells(proof.proved) if proof.proved else ("nothing",))
    return result


def _cells(certificate: CertificateSpec) -> tuple[str, ...]:
    return (
        f"{certificate.alpha:g}",
        f"{certificate.threshold:g}",
        f"{certificate.accepted:,}",
        f"{certificate.errors:,}",
        f"{certificate.risk_bound:.3%}",
        f"{certificate.coverage_bound:.2%}",
    )


def _prove(
    levels: CertifiedPolicy, answers: Answers, labels: Labels, score: str
) -> CertificateSpec | None:
    gates = [answers.prediction.probabilities]
    if levels.settled_at is not None:
        gates.append(sure_means(levels.policy(0.0), answers))

    def prove(probabilities: Array, floor: float = 0.0) -> Certificate | None:
        return certify(
            probabilities.max(axis=1),
            probabilities.argmax(axis=1) == labels,
            answers.scores[score],
            levels.alpha,
            levels.target_risk,
            levels.confidence,
            floor,
        )

    proved = [certificate for each in gates if (certificate := prove(each)) is not None]
    if len(proved) < len(gates):
        return None
    strictest = max(certificate.threshold for certificate in proved)
    if strictest > (least := min(levels.settled_at or (1.0,))):
        raise CertifyError(f"settled_at is {least:g}, below the proved {strictest:g}")
    proved = [certificate for each in gates if (certificate := prove(each, strictest)) is not None]
    worst = max(proved, key=attrgetter("risk_bound"))
    coverage_bound = min(each.coverage_bound for each in proved)
    return CertificateSpec.of(replace(worst, coverage_bound=coverage_bound))


def _part(manifest: Manifest, role: Role) -> DataSource:
    for part in manifest.data:
        if part.role == role:
            return part
    raise CertifyError(f"{manifest.name} {manifest.version}: its data have no part for {role}")


def _check_agreements(manifest: Manifest, answers: Answers) -> None:
    for name, promised in manifest.agreements.items():
        asked = Agreement(rate=promised.rate, confidence=promised.confidence)
        try:
            found = count_differing(manifest.policies[name], asked, answers)
        except AgreementError as error:
            raise CertifyError(f"policy {name!r}: {error}") from error
        if found.differing > promised.differing:
            raise CertifyError(
                f"policy {name!r}: {found.differing} of {found.calibration_size:,} calibration "
                f"images are decided otherwise than by all members, not {promised.differing}"
            )


def _check_scores(bundle: Bundle, score: str, scores: Array) -> None:
    """The gate compares with the scores in the bundle: they must be those of the images."""
    expected, actual = bundle.calibration.tests[score].scores, ConformalTest.fit(scores).scores
    if expected.shape != actual.shape:
        raise CertifyError(
            f"{bundle.path / CALIBRATION}: {expected.size} scores of {actual.size} images"
        )
    difference = float((np.abs(actual - expected) / np.maximum(1, np.abs(expected))).max())
    if not difference <= TOLERANCE:
        raise CertifyError(
            f"{bundle.path / CALIBRATION}: {score} differs by {difference:.2g} from the scores of "
            f"the calibration images, allowed is {TOLERANCE:g}"
        )
