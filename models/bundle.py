"""Bundles on disk: written once, content-addressed, verified before use.

A bundle is a directory; `manifest.json` holds the sha256 of every other file, and its own sha256
is the bundle's digest. Nothing in it is executable: no pickle, arrays are read with
`allow_pickle=False`. Publishing writes beside the target and renames, so that a reader sees the
whole bundle or none.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from models.calibration import Calibration
from models.conformal import CalibrationError
from models.detectors import DETECTORS, FUSED, Detectors
from models.manifest import Manifest

MANIFEST = "manifest.json"
GRAPH = "ensemble.onnx"
GROUP_GRAPH = "group.onnx"
BLOCK_GRAPH = "block.onnx"
BLOCK_GROUPS = 3  # from the first look of a confident policy to the second
WEIGHTS = "weights.safetensors"
CALIBRATION = "calibration.npz"
GOLDEN = "golden.npz"
CLASSES = "classes"
OUTPUTS = ("logits", "features")  # of the graphs; a block tells the first alone
REQUIRED = (GRAPH, GROUP_GRAPH, WEIGHTS, CALIBRATION, GOLDEN)


def initializer_name(name: str) -> str:
    """What a tensor of the weights is called in the graphs, where a name has no dots."""
    return name.replace(".", "_")


class BundleError(Exception):
    """A bundle that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class Golden:
    """The self-test: images as they would be sent, and the `models.outputs` they must give.

    Attributes:
        images: uint8 [n, H, W, C].
        logits: float32 [n, M, K].
        features: float32 [n, G, F].
    """

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: its directory.
        digest: sha256 of its manifest, 64 hexadecimal digits.
        manifest: the parsed manifest.
        detectors: what scores images.
        calibration: the conformal tests of every detector.
        golden: inputs and expected answers.
    """

    path: Path
    digest: str
    manifest: Manifest
    detectors: Detectors
    calibration: Calibration
    golden: Golden


def resolve(path: Path) -> Path:
    """The bundle's directory: `path` itself, or its highest version if it holds versions.

    Raises:
        BundleError: there is no bundle.
    """
    if (path / MANIFEST).is_file():
        return path
    versions = [child.parent for child in path.glob(f"[!.]*/{MANIFEST}")] if path.is_dir() else []
    if not versions:
        raise BundleError(f"{path}: no bundle here ({MANIFEST} is missing)")
    return max(versions, key=lambda version: _order(version.name))


def _order(version: str) -> list[tuple[int, str]]:
    """Sorts versions as their authors mean them: 2 before 10, 1.9 before 1.10."""
    return [(int(part) if part.isdecimal() else -1, part) for part in version.split(".")]


def load(path: Path) -> Bundle:
    """Read the bundle at `path` and verify every file of it.

    Raises:
        BundleError: a file is missing, unlisted, altered or unreadable.
    """
    root = resolve(path)
    manifest, digest = read_manifest(root)
    for name in REQUIRED:
        if name not in manifest.files:
            raise BundleError(f"{root / MANIFEST}: lists no {name}")
    present = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}
    for name in sorted(present - set(manifest.files) - {MANIFEST}):
        raise BundleError(f"{root / name}: not listed in {MANIFEST}")
    for name, expected in manifest.files.items():
        file = root / name
        if name not in present:
            raise BundleError(f"{file}: missing, though listed in {MANIFEST}")
        try:
            actual = sha256(file)
        except OSError as error:
            raise BundleError(f"{file}: {error.strerror}") from error
        if actual != expected:
            raise BundleError(f"{file}: sha256 is {actual}, {MANIFEST} says {expected}")
    detectors = _read_detectors(root, manifest)
    calibration = _read_calibration(root, manifest)
    golden = _read_golden(root, manifest, detectors.feature_shape[1])
    return Bundle(root, digest, manifest, detectors, calibration, golden)


def read_manifest(root: Path) -> tuple[Manifest, str]:
    """Parse `manifest.json` in `root`; returns it with its sha256.

    Raises:
        BundleError: it is unreadable or does not fit the schema.
    """
    file = root / MANIFEST
    try:
        content = file.read_bytes()
        return Manifest.model_validate_json(content), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise BundleError(f"{file}: {where}: {first['msg']}") from error


def publish(source: Path, manifest: Manifest, target: Path) -> str:
    """Publish the files of `source` as the bundle `target`, atomically, replacing an older one.

    `manifest.files` is filled in here. Returns the bundle's digest.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    older = stage.with_name(f"{stage.name}-older")
    try:
        shutil.copytree(source, stage, dirs_exist_ok=True)
        files = sorted(file for file in stage.rglob("*") if file.is_file())
        digests = {str(file.relative_to(stage)): sha256(file) for file in files}
        complete = manifest.model_copy(update={"files": digests})
        content = complete.model_dump_json(indent=1).encode() + b"\n"
        (stage / MANIFEST).write_bytes(content)
        for file in stage.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        stage.chmod(0o755)
        if target.exists():
            os.replace(target, older)
        os.replace(stage, target)
    except BaseException:
        if older.exists() and not target.exists():
            os.replace(older, target)
        shutil.rmtree(stage, ignore_errors=True)
        raise
    shutil.rmtree(older, ignore_errors=True)
    return hashlib.sha256(content).hexdigest()


def sha256(file: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_arrays(file: Path, names: tuple[str, ...]) -> dict[str, NDArray[np.generic]]:
    """Read arrays of an archive, without pickle.

    Raises:
        BundleError: it is no archive of plain arrays, or lacks one.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in names}
    except KeyError as error:
        hint = "if an older version wrote it, repeat the stage that did"
        raise BundleError(f"{file}: {error.args[0]}: {hint}") from error
    except (OSError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{file}: not a readable array archive ({error})") from error


def read_calibration(file: Path, score: str, size: int, with_classes: bool) -> Calibration:
    """The tests of the calibration scores in an archive.

    Args:
        file: the archive: scores [n] by detector, and as `CLASSES` the classes [n] that the first
            group of members predicts.
        score: the detector that raises the flag.
        size: n.
        with_classes: whether to make the tests within predicted classes.

    Raises:
        BundleError: it is no archive of plain arrays, or they are not n numbers each.
    """
    arrays = read_arrays(file, (*DETECTORS, CLASSES) if with_classes else DETECTORS)
    for name, values in arrays.items():
        kinds, expected = ("iu", "whole numbers") if name == CLASSES else ("f", "real numbers")
        if values.dtype.kind not in kinds:
            raise BundleError(f"{file}: {name} has type {values.dtype}, expected {expected}")
        if values.shape != (size,):
            raise BundleError(f"{file}: {name} has shape {values.shape}, {MANIFEST} says {size}")
    scores = {name: arrays[name].astype(np.float64) for name in DETECTORS}
    classes = arrays[CLASSES].astype(np.int64) if with_classes else None
    try:
        return Calibration.fit(score, scores, classes)
    except CalibrationError as error:
        raise BundleError(f"{file}: {error}") from error


def _read_calibration(root: Path, manifest: Manifest) -> Calibration:
    spec, policies = manifest.calibration, manifest.policies
    for score in (spec.score, *(each.score for each in policies.values())):
        if score is not None and score not in DETECTORS:
            known = ", ".join(DETECTORS)
            raise BundleError(f"{root / MANIFEST}: unknown score {score!r}, known are {known}")
    with_classes = any(each.conditional_on is not None for each in policies.values())
    calibration = read_calibration(root / CALIBRATION, spec.score, spec.size, with_classes)
    try:
        calibration.check(policies, manifest.labels)
    except CalibrationError as error:
        raise BundleError(f"{root / MANIFEST}: {error}") from error
    return calibration


def _read_detectors(root: Path, manifest: Manifest) -> Detectors:
    file, fused = root / CALIBRATION, manifest.calibration.fused
    unknown = [name for name in fused if name not in DETECTORS or name == FUSED]
    if unknown or not fused:
        raise BundleError(f"{root / MANIFEST}: cannot fuse {unknown or 'no detectors'}")
    try:
        detectors = Detectors.from_arrays(read_arrays(file, Detectors.names(fused)), fused)
    except ValueError as error:
        raise BundleError(f"{file}: {error}") from error
    members, expected = detectors.feature_shape[0], manifest.members.group
    if members != expected:
        raise BundleError(f"{file}: detectors of {members} members' features, not {expected}")
    return detectors


def _read_golden(root: Path, manifest: Manifest, units: int) -> Golden:
    file, members = root / GOLDEN, manifest.members
    arrays = read_arrays(file, ("images", "logits", "features"))
    channels, height, width = manifest.input.shape
    count = len(arrays["images"]) if arrays["images"].ndim else 0
    shapes = {
        "images": (count, height, width, channels),
        "logits": (count, members.count, len(manifest.labels)),
        "features": (count, members.group, units),
    }
    for name, expected in shapes.items():
        values = arrays[name]
        if values.shape != expected or count == 0:
            raise BundleError(f"{file}: {name} of shape {values.shape}, expected {expected}")
        if name == "images":
            if values.dtype != np.uint8:
                raise BundleError(f"{file}: images of type {values.dtype}, expected uint8")
        elif values.dtype.kind != "f" or not np.isfinite(values.astype(np.float32)).all():
            raise BundleError(f"{file}: {name} must be finite real numbers")
    return Golden(
        arrays["images"].astype(np.uint8),
        arrays["logits"].astype(np.float32),
        arrays["features"].astype(np.float32),
    )
