from __future__ import annotations

import json

import pytest

from service import cli


@pytest.fixture(autouse=True)
def _no_settings_outside(monkeypatch):
    from service.settings import Settings

    for name in ("CONFIG", *map(str.upper, Settings.model_fields)):
        monkeypatch.delenv(f"GATE_{name}", raising=False)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line; returns its status, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["service", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        captured = capsys.readouterr()
        return leaving.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def photo(tmp_path, png):
    file = tmp_path / "photo.png"
    file.write_bytes(png)
    return file


def check_one_line(error: str) -> None:
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_check(run, bundle_path, model):
    status, output, _ = run("check", "--bundle", bundle_path)
    assert status == 0
    assert f"sha256:{model.bundle.digest}" in output
    assert "self-test   passed: 5 images" in output
    assert "verified" in output


def test_check_names_the_file_that_was_altered(run, publish):
    path = publish()
    (path / "calibration.npz").write_bytes(b"other")
    status, output, error = run("check", "--bundle", path)
    assert status == 1
    assert output == ""
    check_one_line(error)
    assert "calibration.npz: sha256" in error


def test_check_of_an_unverified_bundle(run, publish):
    path = publish(passed=False)
    status, _, error = run("check", "--bundle", path)
    assert status == 1
    check_one_line(error)
    status, output, _ = run("check", "--bundle", path, "--allow-unverified")
    assert status == 0
    assert "unverified (r_hat)" in output


def test_predict_prints_a_table(run, bundle_path, photo):
    status, output, _ = run("predict", photo, photo, "--bundle", bundle_path)
    assert status == 0
    header, first, second = output.splitlines()
    assert header.split()[:3] == ["file", "decision", "label"]
    assert first == second
    assert str(photo) in first


def test_predict_says_what_the_service_says(run, bundle_path, photo, model, images):
    status, output, _ = run("predict", photo, "--bundle", bundle_path, "--json")
    assert status == 0
    answer = json.loads(output)
    from models.preprocessing import prepare
    from models.uncertainty import summarise
    from service.runtime import everything

    outputs = everything(model.runtime, prepare(images[:1], model.manifest.input)[0])
    shown = list(answer["results"][0]["probabilities"].values())
    assert shown == summarise(outputs.logits).probabilities[0].tolist()
    assert answer["model"]["digest"] == f"sha256:{model.bundle.digest}"


def test_predict_with_files_that_are_none(run, bundle_path, photo, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("words")
    status, output, _ = run("predict", text, photo, tmp_path / "no", "--bundle", bundle_path)
    assert status == 1
    lines = output.splitlines()
    assert "no image" in lines[1]
    assert str(photo) in lines[2]
    assert "No such file" in lines[3]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-batch-images", "9", "--max-queue-images", "8"], "must not exceed"),
        (["--policy", "bold"], "no policy 'bold'"),
        (["--config", "/nowhere.toml"], "/nowhere.toml: No such file"),
        (["--device", "cuda", "--runtime", "onnx"], "no CUDA provider"),
    ],
)
def test_serve_refuses_contradictions_in_one_line(run, bundle_path, flags, message, monkeypatch):
    from service.runtime import onnx

    monkeypatch.setattr(onnx.ort, "get_available_providers", lambda: [onnx.CPU])
    options = ["--max-images-per-request", "1"] if "--max-batch-images" in flags else []
    status, _, error = run("serve", "--bundle", bundle_path, *flags, *options)
    assert status == 1
    check_one_line(error)
    assert message in error


def test_every_setting_is_a_flag(run):
    from service.settings import Settings

    status, output, _ = run("serve", "--help")
    assert status == 0
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in output


def test_health_of_nothing(run):
    status, output, error = run("health", "--url", "http://127.0.0.1:9")
    assert status == 1
    assert output == ""
    assert "http://127.0.0.1:9/readyz" in error
    assert error.count("\n") == 1


def test_openapi(run):
    status, output, _ = run("openapi")
    assert status == 0
    assert "/predict" in json.loads(output)["paths"]
