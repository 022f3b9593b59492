"""The command line, end to end, on a recipe of seconds."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import bundle as bundles
from models.bundle import REQUIRED
from models.detectors import DETECTORS
from tests.waiting import eventually
from training import cli

ROOT = Path(__file__).parents[2]
RECIPE = """
name = "tiny"
seed = 1
polarity = "light-on-dark"
members = 4
group = 2
score = "mutual_information"

[data]
dataset = "digits"
validation = 100
calibration = 297

[network]
name = "mlp"
hidden = [8]
activation = "tanh"

[prior]
family = "gaussian"
weight_gain = 4.0
bias_std = 1.0

[sampler]
name = "sgld"
chains = 2
batch_size = 100
warm_start_epochs = 2
warm_start_step_size = 0.05
burn_in_epochs = 4
sampling_epochs = 8
samples = 4
trace = 16
schedule = { kind = "constant", step_size = 0.1 }

[prediction_sets]
score = "lac"
coverage = 0.95

[policies.default]
alpha = 0.01
min_probability = 0.5

[policies.sure]
alpha = 0.05
min_probability = 0.5
alpha_confidence = 0.9

[policies.by_class]
alpha = 0.25
min_probability = 0.5
conditional_on = "class"

[policies.features]
alpha = 0.05
min_probability = 0.5
score = "feature_subspaces"

[policies.proved]
alpha = 0.05
target_risk = 0.1
confidence = 0.9
"""
LONG = RECIPE.replace("burn_in_epochs = 4", "burn_in_epochs = 300")
STAGES = ("diagnose", "export", "calibrate", "evaluate", "publish")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def failure(self) -> str:
        """The error line, after checking that it is alone and that the exit code is 1."""
        assert self.code == 1
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("error: ").rstrip("\n")


Call = Callable[..., Outcome]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`python -m training`, in this process."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), printed.out, printed.err)

    return run


def spawn(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """`python -m training`, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "training", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write(tmp_path, RECIPE)


def write(folder: Path, text: str) -> Path:
    file = folder / "tiny.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a whole run with default paths."""
    folder = tmp_path_factory.mktemp("finished")
    with spawn("run", write(folder, RECIPE), "--workers", 1, cwd=folder) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    assert re.search(r"published runs/tiny/bundles/tiny/1 +sha256:[0-9a-f]{64}", out)
    return folder / "runs" / "tiny"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_run_yields_a_bundle_that_loads(finished: Path) -> None:
    bundle = bundles.load(finished / "bundles" / "tiny")
    manifest = bundle.manifest
    assert bundle.path.name == "1"
    assert manifest.members.count == 4
    assert manifest.members.selection == "greedy"
    chosen = set(zip(manifest.members.chains, manifest.members.samples, strict=True))
    assert len(chosen) == 4
    assert chosen <= {(chain, sample) for chain in range(2) for sample in range(4)}
    assert manifest.posterior.num_data == 900
    assert [(part.role, part.size) for part in manifest.data] == [
        ("train", 900),
        ("validation", 100),
        ("calibration", 297),
        ("test", 500),
    ]
    assert bundle.golden.logits.shape == (16, 4, 10)
    assert bundle.golden.features.shape == (16, 2, 8)
    assert bundle.detectors.feature_shape == (2, 8)
    assert list(bundle.calibration.tests) == list(DETECTORS)
    assert manifest.policies["features"].score == "feature_subspaces"
    assert manifest.results["test"]["accuracy"] > 0.5


def test_bundle_and_card_tell_the_same_numbers(finished: Path) -> None:
    bundle = bundles.load(finished / "bundles" / "tiny")
    card = (bundle.path / "MODEL_CARD.md").read_text()
    report = json.loads((bundle.path / "report" / "report.json").read_text())
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert bundle.manifest.results == report["results"] == evaluation
    assert f"{100 * evaluation['test']['accuracy']:.2f} %" in card
    assert ("UNVERIFIED" in card) is not bundle.manifest.verdict.verified
    sets, measured = bundle.manifest.prediction_sets, evaluation["test"]["prediction_sets"]
    assert sets is not None
    assert (sets.score, sets.coverage, sets.calibration_size) == ("lac", 0.95, 297)
    assert f"| test | {100 * measured['coverage']:.2f} % | {measured['mean_size']:.3f} |" in card
    assert "0.05, with confidence 90 %" in card
    assert "0.25, in each class" in card


def test_same_recipe_gives_the_same_bundle(finished: Path, recipe: Path, call: Call) -> None:
    """In another folder, in another process and with chains side by side."""
    out = recipe.parent / "elsewhere" / "deep"
    assert call("run", recipe, "--out", out, "--workers", 2).code == 0
    for name in REQUIRED:
        assert (out / "bundle" / name).read_bytes() == (finished / "bundle" / name).read_bytes()
    published = (finished / "bundles" / "tiny" / "1", out / "bundles" / "tiny" / "1")
    assert bundles.load(published[0]).digest == bundles.load(published[1]).digest


def test_each_stage_can_be_repeated_alone(run: Path, call: Call) -> None:
    before = contents(run)
    for name in ("bundle", "bundles"):
        shutil.rmtree(run / name)
    for name in ("diagnostics.json", "evaluation.json"):
        (run / name).unlink()
    expected = {"diagnose": 0 if bundles_verified(before) else 3}
    for stage in STAGES:
        assert call(stage, run).code == expected.get(stage, 0)
    assert contents(run) == before


def bundles_verified(files: dict[str, bytes]) -> bool:
    return bool(json.loads(files["bundle/report/report.json"])["verified"])


def test_finished_run_is_not_sampled_again(run: Path, recipe: Path, call: Call) -> None:
    before = contents(run)
    assert call("sample", recipe, "--out", run, "--workers", 1).code == 0
    assert contents(run) == before


@pytest.mark.parametrize(
    ("stage", "missing", "reason"),
    [
        ("diagnose", "chains/00.safetensors", "run the sample stage first"),
        ("export", "chains/01.safetensors", "run the sample stage first"),
        ("calibrate", "bundle/ensemble.onnx", "run the export stage first"),
        ("evaluate", "bundle/calibration.npz", "run the calibrate stage first"),
        ("evaluate", "certificates.json", "run the calibrate stage first"),
        ("publish", "agreements.json", "run the calibrate stage first"),
        ("evaluate", "prediction_sets.json", "run the calibrate stage first"),
        ("publish", "evaluation.json", "run the evaluate stage first"),
        ("publish", "diagnostics.json", "run the diagnose stage first"),
        ("baselines", "recipe.json", "no run here: start one with"),
    ],
)
def test_stage_before_its_predecessor(
    run: Path, call: Call, stage: str, missing: str, reason: str
) -> None:
    (run / missing).unlink()
    before = contents(run)
    failure = call(stage, run).failure
    assert str(run) in failure
    assert reason in failure
    assert contents(run) == before


@pytest.mark.parametrize("lost", ["feature_neighbours.references", "relative_mahalanobis"])
def test_calibration_of_an_older_version(run: Path, call: Call, lost: str) -> None:
    file = run / "bundle" / "calibration.npz"
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files if name != lost}
    np.savez(file, allow_pickle=False, **arrays)
    failure = call("evaluate", run).failure
    assert failure.startswith(f"{file}: {lost} is not a file in the archive: if an older version")


@pytest.mark.parametrize(
    ("old", "new"),
    [("seed = 1", "seed = 2"), ("hidden = [8]", "hidden = [9]"), ("alpha = 0.01", "alpha = 0.02")],
)
def test_changed_recipe_in_an_old_run_directory(
    run: Path, recipe: Path, call: Call, old: str, new: str
) -> None:
    before = contents(run)
    recipe.write_text(RECIPE.replace(old, new))
    failure = call("run", recipe, "--out", run).failure
    assert failure.startswith(f"{run} belongs to another recipe")
    assert "--out" in failure
    assert contents(run) == before


@pytest.mark.parametrize("option", [("--seed", 2), ("--chains", 3)])
def test_options_are_part_of_the_recipe(
    run: Path, recipe: Path, call: Call, option: tuple[str, int]
) -> None:
    assert "another recipe" in call("sample", recipe, "--out", run, *option).failure


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("seed = 1", "seed = 1\ncolour = 'red'", "colour: unknown key"),
        ("validation = 100", "validation = 100\nextra = 1", "data.extra: unknown key"),
        ("seed = 1", "", "seed: Field required"),
        ("members = 4", "members = 9", "members exceed"),
        ("members = 4", "members = 5", "members = 5 must be a multiple of group = 2"),
        ("hidden = [8]", "hidden = ['8x']", "network.hidden.0: "),
        ("seed = 1", "seed = ", "not TOML"),
    ],
)
def test_recipe_that_does_not_fit(
    recipe: Path, call: Call, old: str, new: str, reason: str
) -> None:
    recipe.write_text(RECIPE.replace(old, new))
    failure = call("run", recipe, "--out", recipe.parent / "out").failure
    assert failure.startswith(f"{recipe}: ")
    assert reason in failure
    assert not (recipe.parent / "out").exists()


def test_fewer_chains_than_the_members_need(recipe: Path, call: Call) -> None:
    recipe.write_text(RECIPE.replace("members = 4", "members = 6"))
    assert "members" in call("run", recipe, "--chains", 1).failure


def test_unknown_recipe(call: Call) -> None:
    failure = call("run", "nothing").failure
    assert failure.startswith("no recipe 'nothing': use one of cifar10, digits, ")
    assert failure.endswith(", mnist, or the path of a .toml file")


def test_damaged_data(tmp_path: Path, call: Call) -> None:
    file = tmp_path / "data" / "mnist" / "train-images-idx3-ubyte.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"damaged")
    options = ("--data-dir", tmp_path / "data", "--out", tmp_path / "out", "--workers", 1)
    failure = call("run", "mnist", *options).failure
    assert failure.startswith(f"{file} has sha256 ")
    assert file.read_bytes() == b"damaged"


def test_recipe_that_draws_no_samples(recipe: Path, call: Call, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.replace("sampling_epochs = 8", "sampling_epochs = 0"))
    assert "sampling" in call("run", recipe, "--out", tmp_path / "out", "--workers", 1).failure


def test_run_directory_that_cannot_be_made(recipe: Path, call: Call) -> None:
    assert str(recipe) in call("sample", recipe, "--out", recipe).failure


@pytest.mark.parametrize("content", ["", "{"])
@pytest.mark.parametrize(
    ("stage", "name"), [("diagnose", "recipe.json"), ("publish", "evaluation.json")]
)
def test_damaged_file_of_the_run_directory(
    run: Path, call: Call, stage: str, name: str, content: str
) -> None:
    (run / name).write_text(content)
    assert str(run / name) in call(stage, run).failure


def test_damaged_calibration(run: Path, call: Call) -> None:
    file = run / "bundle" / "calibration.npz"
    file.write_bytes(b"cut")
    assert str(file) in call("evaluate", run).failure


def test_inspect_a_run(finished: Path, call: Call) -> None:
    outcome = call("inspect", finished)
    assert outcome.code == 0
    assert "run of tiny: 2 chains × 4 samples" in outcome.out
    assert outcome.out.count("present") == 4
    assert "rhat.nll" in outcome.out
    assert "published: " in outcome.out


def test_inspect_a_run_that_was_only_begun(run: Path, call: Call) -> None:
    for name in ("diagnostics.json", "evaluation.json", "chains/01.safetensors"):
        (run / name).unlink()
    shutil.rmtree(run / "bundles")
    outcome = call("inspect", run)
    assert outcome.code == 0
    assert outcome.out.count("missing") == 2
    assert outcome.out.count("not begun") == 1
    assert "published" not in outcome.out


@pytest.mark.parametrize("name", ["bundles/tiny", "bundles/tiny/1"])
def test_inspect_a_bundle(finished: Path, call: Call, name: str) -> None:
    outcome = call("inspect", finished / name)
    assert outcome.code == 0
    assert f"sha256:{bundles.load(finished / name).digest}" in outcome.out
    assert "4 members, 610 weights each" in outcome.out
    assert "labels: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in outcome.out


def test_inspect_a_damaged_bundle(run: Path, call: Call) -> None:
    file = run / "bundles" / "tiny" / "1" / "MODEL_CARD.md"
    file.write_text("better numbers")
    assert call("inspect", run / "bundles" / "tiny").failure.startswith(f"{file}: sha256 is")


def edit_certificate(run: Path, **changes: object) -> Path:
    """The published bundle with another certificate, out of reach of its run directory."""
    bundle = Path(shutil.move(run / "bundles" / "tiny", run.parent / "elsewhere"))
    file = bundle / "1" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["certificates"]["proved"].update(changes)
    file.write_text(json.dumps(manifest))
    return bundle


def test_certify_a_bundle(run: Path, call: Call) -> None:
    outcome = call("certify", edit_certificate(run))
    assert outcome.code == 0
    assert re.search(r"proved +│ 0.05 │.*│ yes", outcome.out)
    assert "NO" not in outcome.out


def test_certify_a_bundle_that_promises_too_much(run: Path, call: Call) -> None:
    outcome = call("certify", edit_certificate(run, errors=0, risk_bound=0.01))
    assert outcome.code == 3
    assert re.search(r"proved +│ 0.05 │.*│ NO", outcome.out)
    assert "proved:" in outcome.out
    assert outcome.err == ""


def test_certify_on_other_data(run: Path, call: Call, tmp_path: Path) -> None:
    for name in ("0", "1"):
        folder = tmp_path / "images" / "train" / name
        folder.mkdir(parents=True)
        for index in range(300):
            Image.new("L", (8, 8), index % 256).save(folder / f"{index}.png")
    bundle = run / "bundles" / "tiny"
    assert (
        "these are other data" in call("certify", bundle, "--folder", tmp_path / "images").failure
    )
    assert str(tmp_path / "none") in call("certify", bundle, "--folder", tmp_path / "none").failure


def test_certify_without_certificates(run: Path, call: Call) -> None:
    bundle = run / "bundles" / "tiny" / "1"
    file = bundle / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "certificates": {}}))
    assert (
        call("certify", bundle).failure
        == f"{bundle}: has no certificate: its recipe asked for none"
    )


def test_recipe_whose_promise_cannot_be_proved(run: Path, call: Call) -> None:
    file = run / "recipe.json"
    file.write_text(file.read_text().replace('"target_risk": 0.1', '"target_risk": 0.0001'))
    before = contents(run)
    failure = call("calibrate", run).failure
    assert failure.startswith("policy 'proved': 297 calibration images do not prove an error rate")
    assert contents(run) == before


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            '"coverage": 0.95',
            '"coverage": 0.999',
            "prediction_sets: 297 calibration images are too few for a coverage of 0.999: 999 are",
        ),
        (
            '"alpha_confidence": 0.9',
            '"alpha_confidence": 0.9999999',
            "policy 'sure': 297 calibration images do not keep alpha 0.05 with confidence 1: 315 ",
        ),
        ('"alpha": 0.25', '"alpha": 0.001', "policy 'by_class': "),
    ],
    ids=["sets", "confidence", "class"],
)
def test_calibration_images_too_few_for_a_promise(
    run: Path, call: Call, old: str, new: str, reason: str
) -> None:
    file = run / "recipe.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    before = contents(run)
    failure = call("calibrate", run).failure
    assert failure.startswith(reason)
    assert failure.endswith(" are needed")
    assert contents(run) == before


def test_inspect_nothing(tmp_path: Path, call: Call) -> None:
    assert call("inspect", tmp_path).failure.startswith(f"{tmp_path}: no bundle here")


def test_inspect_prints_names_as_they_are(run: Path, call: Call) -> None:
    named = run.rename(run.with_name("[red]"))
    assert str(named) in call("inspect", named).out


def test_help_names_every_command(call: Call) -> None:
    outcome = call("--help")
    assert outcome.code == 0
    for command in ("run", "sample", *STAGES, "baselines", "certify", "inspect"):
        assert re.search(rf"\b{command}\b", outcome.out)


@pytest.fixture
def sampling(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run with long chains that has just begun."""
    recipe = write(tmp_path, LONG)
    process = spawn("sample", recipe, "--out", "run", "--workers", 1, cwd=tmp_path)
    try:
        yield process
    finally:
        if alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def alive(group: int) -> list[int]:
    """Processes of a group, without those that have ended and wait to be collected."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, members = status.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(members) == group and state != "Z":
            found.append(int(status.parent.name))
    return found


def test_interrupt_saves_and_resumes(
    sampling: subprocess.Popen[str], tmp_path: Path, call: Call
) -> None:
    chains = tmp_path / "run" / "chains"
    eventually((chains / "00.safetensors").exists)
    os.killpg(sampling.pid, signal.SIGINT)
    _, err = sampling.communicate(timeout=30)
    assert sampling.returncode == 130
    assert "Traceback" not in err
    eventually(lambda: not alive(sampling.pid), seconds=5)
    recipe = tmp_path / "tiny.toml"
    assert call("sample", recipe, "--out", tmp_path / "run", "--workers", 1).code == 0
    assert call("inspect", tmp_path / "run").out.count("safetensors: present") == 2


def test_interrupt_while_the_workers_start(sampling: subprocess.Popen[str]) -> None:
    eventually(lambda: len(alive(sampling.pid)) == 3)
    time.sleep(1)
    os.killpg(sampling.pid, signal.SIGINT)
    _, err = sampling.communicate(timeout=30)
    assert sampling.returncode == 130
    assert "Traceback" not in err


def test_interrupt_says_how_to_resume(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_create", interrupt)
    outcome = call("sample", "digits")
    assert outcome.code == 130
    assert outcome.err == "stopped; the same command resumes\n"


def test_killed_run_leaves_no_process_behind(
    sampling: subprocess.Popen[str], tmp_path: Path
) -> None:
    eventually((tmp_path / "run" / "chains" / "00.safetensors").exists)
    os.kill(sampling.pid, signal.SIGKILL)
    sampling.wait()
    eventually(lambda: not alive(sampling.pid), seconds=5)
