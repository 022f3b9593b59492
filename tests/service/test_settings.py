from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.settings import EMBEDDED_BUNDLE, Settings, load_settings


@pytest.fixture(autouse=True)
def _no_settings_outside(monkeypatch):
    for name in ("CONFIG", *map(str.upper, Settings.model_fields)):
        monkeypatch.delenv(f"GATE_{name}", raising=False)


def write(path: Path, text: str) -> Path:
    file = path / "gate.toml"
    file.write_text(text)
    return file


def test_defaults():
    settings = load_settings()
    assert settings.bundle == EMBEDDED_BUNDLE
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


def test_flags_overrule_the_environment_which_overrules_the_file(tmp_path, monkeypatch):
    file = write(tmp_path, "port = 1\nthreads = 1\nmax_batch_images = 1\n")
    monkeypatch.setenv("GATE_THREADS", "2")
    monkeypatch.setenv("GATE_MAX_BATCH_IMAGES", "2")
    settings = load_settings({"max_batch_images": 3}, file)
    assert (settings.port, settings.threads, settings.max_batch_images) == (1, 2, 3)


def test_the_environment_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("GATE_CONFIG", str(write(tmp_path, "port = 7")))
    assert load_settings().port == 7
    assert load_settings({"port": 8}).port == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "unknown option 'prot'"),
        ("port =", "not TOML"),
        ("port = 70000", "port: .*65535"),
        ("device = 'tpu'", "device: "),
        ("[gate]\nport = 1", "unknown option 'gate'"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(SettingsError, match=message) as error:
        load_settings(config=write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_they_can_be_sent_to_another_process():
    settings = load_settings({"workers": 2, "threads": 3})
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_no_such_file(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.toml: No such file"):
        load_settings(config=tmp_path / "none.toml")


def test_a_bad_variable(monkeypatch):
    monkeypatch.setenv("GATE_PORT", "http")
    with pytest.raises(SettingsError, match=r"port: .*'http'"):
        load_settings()


@pytest.mark.parametrize(
    "flags",
    [
        {"max_images_per_request": 9, "max_queue_images": 8, "max_batch_images": 1},
        {"max_batch_images": 9, "max_queue_images": 8, "max_images_per_request": 1},
        {"max_body_bytes": 9, "max_buffered_bytes": 8},
    ],
)
def test_limits_that_hide_each_other(flags):
    with pytest.raises(SettingsError, match="must not exceed") as error:
        load_settings(flags)
    assert "\n" not in str(error.value)
