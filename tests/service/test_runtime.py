from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import bundle as bundles
from models.outputs import FEATURE_MEMBERS
from models.preprocessing import prepare
from service import runtime
from service.errors import EngineError
from service.runtime import available_cpus, choose, onnx
from service.settings import EMBEDDED_BUNDLE, Settings

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return bundles.load(bundle_path)


def golden(bundle):
    return prepare(bundle.golden.images, bundle.manifest.input)[0]


def test_onnx_answers_the_golden_images(bundle):
    engine = onnx.open_runtime(bundle, "cpu", 1)
    outputs = engine.outputs(golden(bundle))
    assert outputs.logits.dtype == outputs.features.dtype == np.float32
    assert outputs.logits.shape == (5, 4, 3)
    assert outputs.features.shape == (5, 4, 64)
    assert np.abs(outputs.logits - bundle.golden.logits).max() < 1e-5
    assert np.abs(outputs.features - bundle.golden.features).max() < 1e-5
    assert (engine.name, engine.device, engine.members) == ("onnx", "cpu", 4)


@needs_torch
@pytest.mark.parametrize("path", [None, EMBEDDED_BUNDLE], ids=["tiny", "embedded"])
def test_torch_and_onnx_agree(bundle, path):
    from service.runtime import torch

    chosen = bundle if path is None else bundles.load(path)
    images = golden(chosen)
    engine = torch.open_runtime(chosen, "cpu", 1)
    reference = onnx.open_runtime(chosen, "cpu", 1)
    assert (engine.name, engine.members) == ("torch", reference.members)
    for size in (1, 3, len(images)):
        outputs, references = engine.outputs(images[:size]), reference.outputs(images[:size])
        for actual, expected in (
            (outputs.logits, references.logits),
            (outputs.features, references.features),
        ):
            assert actual.dtype == np.float32
            assert actual.shape == expected.shape
            assert np.abs(actual - expected).max() / max(1, np.abs(expected).max()) < 1e-4
        assert outputs.features.shape[:2] == (size, FEATURE_MEMBERS)


def test_a_graph_without_features_is_refused(publish):
    path = publish(outputs=("logits",))
    with pytest.raises(EngineError, match=r"gives \['logits'\], expected .*'features'"):
        onnx.open_runtime(bundles.load(path), "cpu", 1)


@needs_torch
def test_weights_that_do_not_fit_the_network(bundle):
    from service.runtime import torch

    network = bundle.manifest.network.model_copy(update={"hidden": (5,)})
    other = replace(bundle, manifest=bundle.manifest.model_copy(update={"network": network}))
    with pytest.raises(EngineError, match=r"weights\.safetensors: dense1\.weight"):
        torch.open_runtime(other, "cpu", 1)


def test_auto_takes_onnx_on_the_cpu_where_there_is_no_gpu(bundle, monkeypatch):
    monkeypatch.setattr(runtime, "_nvidia_present", lambda: False)
    monkeypatch.setattr(onnx.ort, "get_available_providers", lambda: [onnx.CPU])
    engine = choose(bundle, Settings())
    assert (engine.name, engine.device) == ("onnx", "cpu")


def test_a_gpu_that_cannot_be_used_is_mentioned(bundle, monkeypatch, caplog):
    monkeypatch.setattr(runtime, "_nvidia_present", lambda: True)
    monkeypatch.setattr(runtime.importlib.metadata, "version", lambda name: "2.13.0+cpu")
    monkeypatch.setattr(onnx.ort, "get_available_providers", lambda: [onnx.CPU])
    assert choose(bundle, Settings()).device == "cpu"
    assert "not used" in caplog.text


@pytest.mark.parametrize("name", ["onnx", "auto"])
def test_cuda_without_a_provider_is_refused(bundle, monkeypatch, name):
    monkeypatch.setattr(runtime, "_nvidia_present", lambda: False)
    monkeypatch.setattr(onnx.ort, "get_available_providers", lambda: [onnx.CPU])
    with pytest.raises(EngineError, match="no CUDA provider"):
        choose(bundle, Settings(runtime=name, device="cuda"))


def test_torch_where_it_is_not_installed(bundle, monkeypatch):
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match="not installed"):
        choose(bundle, Settings(runtime="torch"))


def test_a_graph_that_is_none(bundle, tmp_path):
    (tmp_path / bundles.GRAPH).write_bytes(b"nonsense")
    with pytest.raises(EngineError, match="onnxruntime refuses it") as error:
        onnx.open_runtime(replace(bundle, path=tmp_path), "cpu", 1)
    assert "\n" not in str(error.value)


def test_cpus_of_a_container(monkeypatch):
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(Path, "read_text", lambda path: "150000 100000\n")
    assert available_cpus() == 2
    monkeypatch.setattr(Path, "read_text", lambda path: "max 100000\n")
    assert available_cpus() == 64


def test_torch_is_not_imported_on_the_cpu_path(bundle_path):
    script = f"""
import sys
from pathlib import Path
from service.app import create_app
from service.repository import open_model
from service.settings import Settings
settings = Settings(bundle=Path({str(bundle_path)!r}), device="cpu")
create_app(settings, open_model(settings))
assert not any(name.split(".")[0] in ("torch", "scipy", "onnx", "pandas") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)


def test_health_needs_neither_numpy_nor_a_web_framework():
    script = """
import sys
import service.cli, service.probe
heavy = {"numpy", "fastapi", "onnxruntime", "PIL", "torch"}
assert not heavy & {name.split(".")[0] for name in sys.modules}
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)
