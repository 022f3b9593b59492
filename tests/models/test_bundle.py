from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models import bundle as bundles
from models.bundle import MANIFEST, REQUIRED, BundleError, load, publish, resolve
from models.detectors import DETECTORS, Detectors
from models.manifest import Manifest

FILES = (*REQUIRED, "MODEL_CARD.md", "report/report.json")
OBJECTS = np.array([None])
POLICY = {"alpha": 0.3, "min_probability": 0.9}
SETS = {"score": "lac", "coverage": 0.7, "calibration_size": 5, "threshold": 0.4}


@pytest.fixture
def bundle(tmp_path: Path, source: Path, manifest: Manifest) -> Path:
    path = tmp_path / "bundles" / "fake" / "1"
    publish(source, manifest, path)
    return path


def refuse(path: Path, file: Path, reason: str) -> None:
    """Loading fails with one line that begins with the file and gives the reason."""
    with pytest.raises(BundleError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert re.search(reason, message.removeprefix(f"{file}: "))
    assert "\n" not in message


def rewrite(bundle: Path, **values: Any) -> None:
    """Change keys of the manifest; `None` takes a key away."""
    file = bundle / MANIFEST
    content = {**json.loads(file.read_text()), **values}
    kept = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(kept))


def replace(bundle: Path, name: str, write: Callable[[Path], Any]) -> None:
    """Write a file anew and list its digest, as a faulty producer would."""
    file = bundle / name
    write(file)
    listed = json.loads((bundle / MANIFEST).read_text())["files"]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    rewrite(bundle, files={**listed, name: digest})


def archive(**arrays: Any) -> Callable[[Path], None]:
    return lambda file: np.savez(file, allow_pickle=True, **arrays)


def save_lone(file: Path) -> None:
    with file.open("wb") as stream:
        np.save(stream, np.zeros(5))


def damage_stream(file: Path) -> None:
    """A zip whose directory is intact and whose first compressed stream is not."""
    with np.load(file) as arrays:
        np.savez_compressed(file, **dict(arrays))
    content = bytearray(file.read_bytes())
    start = 30 + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")
    content[start : start + 20] = b"\xff" * 20
    file.write_bytes(content)


def test_what_was_published_is_loaded(bundle: Path, manifest: Manifest) -> None:
    loaded = load(bundle)
    assert loaded.path == bundle
    assert loaded.digest == hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    assert loaded.manifest.model_copy(update={"files": {}}) == manifest
    assert loaded.manifest.files == {
        name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in FILES
    }
    assert list(loaded.calibration.tests) == list(DETECTORS)
    assert loaded.calibration.score == manifest.calibration.score
    assert loaded.calibration.class_tests == {}
    assert list(loaded.detectors.surprises) == list(manifest.calibration.fused)
    assert {test.size for test in loaded.calibration.tests.values()} == {5}
    assert loaded.golden.images.shape == (7, 4, 6, 3)
    assert loaded.golden.images.dtype == np.uint8
    assert loaded.golden.logits.shape == (7, 4, 3)
    assert loaded.golden.logits.dtype == np.float32
    assert loaded.golden.features.shape == (7, 2, 5)
    assert loaded.golden.features.dtype == np.float32


def test_publish_returns_the_digest(tmp_path: Path, source: Path, manifest: Manifest) -> None:
    digest = publish(source, manifest, tmp_path / "one")
    assert digest == load(tmp_path / "one").digest


def test_same_content_has_the_same_digest(tmp_path: Path, source: Path, manifest: Manifest) -> None:
    first = publish(source, manifest, tmp_path / "one")
    assert publish(source, manifest, tmp_path / "elsewhere" / "two") == first
    (source / "MODEL_CARD.md").write_text("another card")
    assert publish(source, manifest, tmp_path / "three") != first


@pytest.mark.parametrize("name", FILES)
def test_altered_file(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).write_bytes(content)
    refuse(bundle, bundle / name, r"sha256 is [0-9a-f]{64}, manifest.json says [0-9a-f]{64}$")


@pytest.mark.parametrize("name", FILES)
def test_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refuse(bundle, bundle / name, "missing, though listed")


@pytest.mark.parametrize("name", ["extra.txt", "report/extra.txt", ".hidden", "deep/er/file"])
def test_unlisted_file(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_text("")
    refuse(bundle, bundle / name, "not listed in manifest.json")


@pytest.mark.parametrize("name", REQUIRED)
def test_manifest_that_does_not_list_a_required_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    listed = json.loads((bundle / MANIFEST).read_text())["files"]
    rewrite(bundle, files={key: value for key, value in listed.items() if key != name})
    refuse(bundle, bundle / MANIFEST, f"lists no {name}")


@pytest.mark.parametrize("name", ["../outside", "report/../../outside"])
def test_listed_file_outside_the_bundle(bundle: Path, name: str) -> None:
    replace(bundle, name, lambda file: file.write_text("not ours"))
    refuse(bundle, bundle / name, "")


def test_unreadable_file(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(_: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(bundles, "sha256", forbid)
    first = next(iter(json.loads((bundle / MANIFEST).read_text())["files"]))
    refuse(bundle, bundle / first, "Permission denied")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "document: Invalid JSON"),
        (b"{", "document: Invalid JSON"),
        (b"\xff\xfe", "document: Invalid JSON"),
        (b"[]", "document: "),
        (b"{}", "name: Field required"),
    ],
)
def test_manifest_that_is_no_manifest(bundle: Path, content: bytes, reason: str) -> None:
    (bundle / MANIFEST).write_bytes(content)
    refuse(bundle, bundle / MANIFEST, reason)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"colour": "red"}, "^colour: Extra inputs"),
        ({"labels": None}, "^labels: Field required"),
        ({"labels": ["a"]}, "^labels: "),
        ({"schema_version": 1}, "^schema_version: .* made by an older version: calibrate, eval"),
        ({"schema_version": 2}, "^schema_version: .* made by an older version: calibrate, eval"),
        ({"schema_version": 3}, "^schema_version: .* made by an older version: calibrate, eval"),
        ({"schema_version": 5}, "^schema_version: Input should be 4"),
        ({"name": "../fake"}, "^name: "),
        ({"policies": {}}, "^policies: "),
        ({"files": {"ensemble.onnx": "abc"}}, "^files.ensemble.onnx: "),
        ({"members": {"count": 2, "group": 1, "chains": [0], "samples": [0]}}, "^members: "),
        (
            {"members": {"count": 3, "group": 2, "chains": [0] * 3, "samples": [0, 1, 2]}},
            "^members: .*group 2 does not divide the 3 members",
        ),
        (
            {"policies": {"default": {**POLICY, "members": "confident", "settled_at": 0.95}}},
            "agreements must be of the policies with members = confident",
        ),
        (
            {"calibration": {"size": 5, "seed": 1, "score": "vibes", "fused": ["shape"]}},
            "unknown score 'vibes', known are predictive_entropy",
        ),
        (
            {"policies": {"default": {"alpha": 0.1, "min_probability": 0.9, "score": "aura"}}},
            "unknown score 'aura', known are predictive_entropy",
        ),
        (
            {"calibration": {"size": 5, "seed": 1, "score": "fused", "fused": ["vibes", "shape"]}},
            r"cannot fuse \['vibes'\]",
        ),
        (
            {"calibration": {"size": 5, "seed": 1, "score": "fused", "fused": []}},
            "cannot fuse no detectors",
        ),
        (
            {"policies": {"default": {**POLICY, "alpha_confidence": 0.9}}},
            "policy 'default': 5 calibration images do not keep alpha 0.3 with confidence 0.9: "
            "7 are needed",
        ),
        ({"prediction_sets": {**SETS, "calibration_size": 6}}, "prediction_sets are of another"),
        ({"prediction_sets": {**SETS, "coverage": 1.0}}, "^prediction_sets.coverage: "),
        ({"prediction_sets": {**SETS, "score": "best"}}, "^prediction_sets.score: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_manifest_that_does_not_fit_the_schema(
    bundle: Path, values: dict[str, Any], reason: str
) -> None:
    rewrite(bundle, **values)
    refuse(bundle, bundle / MANIFEST, reason)


@pytest.mark.parametrize("name", ["calibration.npz", "golden.npz"])
@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\x80\x04K\x01."),
        archive(**dict.fromkeys(("images", "logits", "shape.mean", *DETECTORS), OBJECTS)),
        pytest.param(save_lone),
        pytest.param(damage_stream),
    ],
    ids=["empty", "pickle", "objects", "npy", "damaged"],
)
def test_archive_that_is_not_plain_arrays(
    bundle: Path, name: str, write: Callable[[Path], Any]
) -> None:
    replace(bundle, name, write)
    refuse(bundle, bundle / name, "not a readable array archive")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_broken_archive_is_closed(bundle: Path) -> None:
    file = bundle / "golden.npz"
    replace(bundle, file.name, lambda file: file.write_bytes(b"PK\x03\x04 and nothing more"))
    with pytest.raises(BundleError, match=r"golden\.npz: not a readable array archive") as caught:
        load(bundle)
    held = {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    del caught
    gc.collect()
    assert str(file) not in held


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("calibration.npz", "shape.mean is not a file .*: if an older version wrote it, repeat"),
        ("golden.npz", "images is not"),
    ],
)
def test_archive_without_the_arrays(bundle: Path, name: str, reason: str) -> None:
    replace(bundle, name, archive(other=np.zeros(3)))
    refuse(bundle, bundle / name, reason)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (np.array([0, 1, 2, 3, np.nan]), "predictive_entropy: calibration scores must be finite"),
        (np.array([0, 1, 2, 3, np.inf]), "predictive_entropy: calibration scores must be finite"),
        (np.zeros(4), r"predictive_entropy has shape \(4,\), manifest.json says 5"),
        (np.zeros((5, 1)), r"predictive_entropy has shape \(5, 1\), manifest.json says 5"),
        pytest.param(np.array(list("abcde")), "predictive_entropy"),
    ],
    ids=["NaN", "infinite", "few", "matrix", "text"],
)
def test_calibration_scores_that_do_not_fit(
    bundle: Path, detectors: Detectors, scores: Any, reason: str
) -> None:
    arrays = {**detectors.arrays(), **dict.fromkeys(DETECTORS, scores)}
    replace(bundle, "calibration.npz", archive(**arrays))
    refuse(bundle, bundle / "calibration.npz", reason)


def by_class(bundle: Path, detectors: Detectors, **arrays: Any) -> None:
    """Calibration scores in no order, other arrays beside them, and a policy by class."""
    scores = dict.fromkeys(DETECTORS, np.array([0.9, 0.1, 0.5, 0.7, 0.3]))
    replace(bundle, "calibration.npz", archive(**detectors.arrays(), **scores, **arrays))
    levels = {"alpha": 0.5, "min_probability": 0.9, "conditional_on": "class"}
    rewrite(bundle, policies={"default": levels})


def test_scores_are_in_the_order_of_the_images_and_so_are_the_classes(
    bundle: Path, detectors: Detectors
) -> None:
    by_class(bundle, detectors, classes=np.array([0, 1, 2, 0, 1]))
    calibration = load(bundle).calibration
    for name in DETECTORS:
        assert calibration.tests[name].scores.tolist() == [0.1, 0.3, 0.5, 0.7, 0.9]
        within = calibration.class_tests[name].tests
        assert {label: test.scores.tolist() for label, test in within.items()} == {
            0: [0.7, 0.9],
            1: [0.1, 0.3],
            2: [0.5],
        }


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ({}, "calibration.npz: classes is not a file"),
        ({"classes": np.zeros(5)}, "calibration.npz: classes has type float64, expected whole"),
        ({"classes": np.zeros(4, int)}, r"calibration.npz: classes has shape \(4,\), .* says 5"),
        (
            {"classes": np.array([0, 1, 1, 0, 1])},
            "manifest.json: policy 'default': 0 calibration images of class 'c' do not keep alpha "
            "0.5 within it: 1 are needed",
        ),
    ],
    ids=["missing", "real", "few", "a class without images"],
)
def test_classes_that_a_policy_cannot_condition_on(
    bundle: Path, detectors: Detectors, classes: Any, reason: str
) -> None:
    by_class(bundle, detectors, **classes)
    with pytest.raises(BundleError, match=reason):
        load(bundle)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("images", (7, 6, 4, 3)),
        ("images", (7, 4, 6, 1)),
        ("images", (7, 4, 6)),
        ("images", (0, 4, 6, 3)),
        ("images", ()),
        ("logits", (6, 4, 3)),
        ("logits", (7, 2, 3)),
        ("logits", (7, 4, 4)),
        ("logits", (7, 6)),
        ("features", (6, 2, 5)),
        ("features", (7, 1, 5)),
        ("features", (7, 4, 5)),
        ("features", (7, 2, 4)),
    ],
    ids=str,
)
def test_golden_shapes_that_do_not_fit(bundle: Path, name: str, shape: tuple[int, ...]) -> None:
    file = bundle / "golden.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    replace(bundle, file.name, archive(**{**arrays, name: np.zeros(shape, arrays[name].dtype)}))
    refuse(bundle, file, f"{name} of shape {re.escape(str(shape))}, expected")


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("images", np.zeros((7, 4, 6, 3)), "images of type float64, expected uint8"),
        ("logits", np.full((7, 4, 3), "a"), "logits must be finite real numbers"),
        ("logits", np.full((7, 4, 3), np.nan), "logits must be finite real numbers"),
        ("features", np.full((7, 2, 5), np.inf), "features must be finite real numbers"),
    ],
    ids=["images of floats", "logits of text", "logits that are no numbers", "infinite features"],
)
def test_golden_values_that_do_not_fit(
    bundle: Path, name: str, values: NDArray[Any], reason: str
) -> None:
    file = bundle / "golden.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    replace(bundle, file.name, archive(**{**arrays, name: values}))
    refuse(bundle, file, reason)


@pytest.mark.parametrize("group", [1, 4])
def test_detectors_of_more_or_fewer_members_than_the_first_group(bundle: Path, group: int) -> None:
    members = {"count": 4, "group": group, "chains": [0] * 4, "samples": [0, 1, 2, 3]}
    rewrite(bundle, members=members)
    refuse(bundle, bundle / "calibration.npz", f"detectors of 2 members' features, not {group}")


def test_resolve_takes_the_path_itself(bundle: Path) -> None:
    assert resolve(bundle) == bundle


@pytest.mark.parametrize(
    ("versions", "highest"),
    [
        (["1", "2", "10"], "10"),
        (["2", "beta"], "2"),
        (["alpha", "beta"], "beta"),
        pytest.param(["1.9", "1.10"], "1.10"),
        (["1", "2", ".3-k2j4x8"], "2"),
    ],
    ids=str,
)
def test_resolve_picks_the_highest_version(
    bundle: Path, tmp_path: Path, versions: list[str], highest: str
) -> None:
    shelf = tmp_path / "shelf"
    for version in versions:
        shutil.copytree(bundle, shelf / version)
    (shelf / "99").mkdir()
    assert resolve(shelf) == shelf / highest
    assert load(shelf).path == shelf / highest


def test_resolve_overlooks_a_bundle_that_is_being_published(bundle: Path) -> None:
    bundle.rename(bundle.with_name(".1-k2j4x8"))
    with pytest.raises(BundleError, match="no bundle here"):
        resolve(bundle.parent)


@pytest.mark.parametrize("name", ["nowhere", "source", "source/MODEL_CARD.md"])
def test_resolve_without_a_bundle(tmp_path: Path, source: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(BundleError, match=f"^{re.escape(str(path))}: no bundle here"):
        resolve(path)


def test_publish_replaces_an_older_bundle(bundle: Path, source: Path, manifest: Manifest) -> None:
    old = load(bundle).digest
    (source / "MODEL_CARD.md").write_text("second edition")
    (source / "report" / "report.json").unlink()
    new = publish(source, manifest, bundle)
    assert load(bundle).digest == new != old
    assert not (bundle / "report" / "report.json").exists()
    assert [child.name for child in bundle.parent.iterdir()] == ["1"]


def test_publish_leaves_the_source_alone(bundle: Path, source: Path) -> None:
    present = {file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()}
    assert present == set(FILES)


def failing(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    calls = iter(range(1, 100))
    return lambda *values: failing() if next(calls) == call else function(*values)


@pytest.mark.parametrize(
    ("owner", "name", "replacement"),
    [
        (shutil, "copytree", failing),
        (bundles, "sha256", failing),
        (Path, "write_bytes", failing),
        (Path, "chmod", failing),
        (os, "replace", failing),
        (os, "replace", failing_at(2, os.replace)),
    ],
    ids=["copy", "digest", "manifest", "modes", "first rename", "second rename"],
)
def test_publish_that_fails_leaves_the_older_bundle_and_nothing_else(
    bundle: Path,
    source: Path,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    replacement: Callable[..., Any],
) -> None:
    before = load(bundle).digest
    (source / "MODEL_CARD.md").write_text("second edition")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, replacement)
        with pytest.raises(OSError, match="No space left"):
            publish(source, manifest, bundle)
    assert load(bundle).digest == before
    assert [child.name for child in bundle.parent.iterdir()] == ["1"]


def test_interrupted_first_publish_leaves_nothing(
    tmp_path: Path, source: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundles, "sha256", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish(source, manifest, tmp_path / "shelf" / "1")
    assert list((tmp_path / "shelf").iterdir()) == []


def test_modes_let_everyone_read(tmp_path: Path, source: Path, manifest: Manifest) -> None:
    """Whatever the umask and the modes of the source: a server may run as another user."""
    (source / "ensemble.onnx").chmod(0o600)
    (source / "report").chmod(0o700)
    umask = os.umask(0o077)
    try:
        publish(source, manifest, tmp_path / "one")
    finally:
        os.umask(umask)
    for path in (tmp_path / "one", *(tmp_path / "one").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)
