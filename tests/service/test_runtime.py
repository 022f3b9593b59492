from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx as onnx_format
import pytest

from models import bundle as bundles
from models.outputs import Outputs
from models.preprocessing import prepare
from service import runtime
from service.errors import EngineError
from service.runtime import available_cpus, choose, everything, onnx
from service.settings import EMBEDDED_BUNDLE, Settings

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return bundles.load(bundle_path)


@pytest.fixture(scope="module")
def embedded():
    return bundles.load(EMBEDDED_BUNDLE)


def golden(bundle):
    return prepare(bundle.golden.images, bundle.manifest.input)[0]


def difference(outputs, expected):
    """The largest of a logit or a feature, relative where that exceeds 1."""
    pairs = ((outputs.logits, expected.logits), (outputs.features, expected.features))
    largest = 0.0
    for actual, target in pairs:
        assert actual.shape == target.shape
        assert actual.dtype == target.dtype == np.float32
        error = np.abs(actual - target) / np.maximum(1, np.abs(target))
        largest = float(np.maximum(largest, error.max()))
    return largest


def test_onnx_answers_the_golden_images(bundle):
    engine = onnx.open_runtime(bundle, "cpu", 1)
    outputs = everything(engine, golden(bundle))
    assert outputs.logits.shape == (5, 10, 3)
    assert outputs.features.shape == (5, 2, 64)
    assert difference(outputs, bundle.golden) < 1e-5
    assert (engine.name, engine.device, engine.members, engine.group) == ("onnx", "cpu", 10, 2)


@pytest.mark.parametrize(("seen", "until"), [(0, 2), (2, 4), (4, 10), (0, 10), (2, 8)])
def test_some_members_answer_for_themselves(bundle, seen, until):
    """Those that were asked, in order; a session with the weights of another would repeat it."""
    engine = onnx.open_runtime(bundle, "cpu", 1)
    logits = engine.evaluate(seen, until, golden(bundle)).logits
    assert np.abs(logits - bundle.golden.logits[:, seen:until]).max() < 1e-5
    assert np.abs(bundle.golden.logits[:, :2] - bundle.golden.logits[:, 2:4]).max() > 0.1


def test_groups_answer_as_the_whole_graph_does(embedded):
    """Of another machine's golden answers the last bits may differ more."""
    images = golden(embedded)
    outputs = everything(onnx.open_runtime(embedded, "cpu", 1), images)
    assert difference(outputs, embedded.golden) < 1e-5
    whole = onnx.ort.InferenceSession(
        str(embedded.path / bundles.GRAPH), providers=["CPUExecutionProvider"]
    )
    logits, features = whole.run(["logits", "features"], {"images": images})
    looked_at = features[:, : embedded.manifest.members.group]
    assert difference(outputs, Outputs(logits, looked_at)) < 2e-6


@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_gets_the_same_to_the_bit_in_any_batch(embedded, threads):
    engine = onnx.open_runtime(embedded, "cpu", threads)
    noise = np.random.default_rng(0).normal(size=(16, 1, 28, 28)).astype(np.float32)
    images = np.concatenate([golden(embedded), noise])
    assert len(images) == 32
    together = everything(engine, images)
    for size in (1, 2, 3, 7, 31):
        parts = [everything(engine, images[at : at + size]) for at in range(0, 32, size)]
        assert np.concatenate([each.logits for each in parts]).tobytes() == (
            together.logits.tobytes()
        )
        assert np.concatenate([each.features for each in parts]).tobytes() == (
            together.features.tobytes()
        )


def test_blocks_are_asked_for_few_images_and_groups_for_many(embedded):
    """Every member once, in order, whatever the span."""
    engine = onnx.open_runtime(embedded, "cpu", 1)
    assert list(engine.blocks) == [2, 8, 14, 20, 26]
    groups, blocks = engine.sessions, engine.blocks
    assert list(engine._asked(0, 32, few=False)) == list(groups)
    assert list(engine._asked(0, 32, few=True)) == [groups[0], *blocks.values()]
    assert list(engine._asked(2, 8, few=True)) == [blocks[2]]
    assert list(engine._asked(2, 20, few=True)) == [blocks[2], blocks[8], blocks[14]]
    assert list(engine._asked(20, 24, few=True)) == [groups[10], groups[11]]
    assert list(engine._asked(24, 32, few=True)) == [groups[12], blocks[26]]


@pytest.mark.parametrize("reason", ["other bits", "large", "none"])
def test_blocks_are_left_alone_where_they_do_not_serve(embedded, tmp_path, monkeypatch, reason):
    changed = replace(embedded, path=tmp_path)
    for file in (bundles.WEIGHTS, bundles.GROUP_GRAPH, bundles.BLOCK_GRAPH):
        shutil.copy(embedded.path / file, tmp_path)
    graph = onnx_format.load(tmp_path / bundles.BLOCK_GRAPH, load_external_data=False)
    match reason:
        case "other bits":
            (last,) = (node for node in graph.graph.node if list(node.output) == ["logits"])
            last.output[0] = "almost"
            factor = onnx_format.numpy_helper.from_array(np.float32(1 + 2e-7), "factor")
            graph.graph.initializer.append(factor)
            node = onnx_format.helper.make_node("Mul", ["almost", "factor"], ["logits"])
            graph.graph.node.append(node)
            onnx_format.save(graph, tmp_path / bundles.BLOCK_GRAPH)
        case "large":
            monkeypatch.setattr(onnx, "SMALL_BYTES", 1_000_000)
        case "none":
            (tmp_path / bundles.BLOCK_GRAPH).unlink()
    engine = onnx.open_runtime(changed, "cpu", 1)
    assert not engine.blocks
    assert difference(everything(engine, golden(embedded)), embedded.golden) < 1e-5


def test_a_block_that_tells_no_logits_is_named(embedded, tmp_path):
    for file in (bundles.WEIGHTS, bundles.GROUP_GRAPH, bundles.BLOCK_GRAPH):
        shutil.copy(embedded.path / file, tmp_path)
    graph = onnx_format.load(tmp_path / bundles.BLOCK_GRAPH, load_external_data=False)
    graph.graph.output[0].name = graph.graph.node[-1].output[0] = "answers"
    onnx_format.save(graph, tmp_path / bundles.BLOCK_GRAPH)
    with pytest.raises(EngineError, match=r"block\.onnx: onnxruntime fails on it: .*logits"):
        onnx.open_runtime(replace(embedded, path=tmp_path), "cpu", 1)


@needs_torch
@pytest.mark.parametrize("path", [None, EMBEDDED_BUNDLE], ids=["tiny", "embedded"])
def test_torch_and_onnx_agree(bundle, path):
    from service.runtime import torch

    chosen = bundle if path is None else bundles.load(path)
    images = golden(chosen)
    engine = torch.open_runtime(chosen, "cpu", 1)
    reference = onnx.open_runtime(chosen, "cpu", 1)
    assert engine.name == "torch"
    assert (engine.members, engine.group) == (reference.members, reference.group)
    for size in (1, 3, len(images)):
        for seen in range(0, engine.members, engine.group):
            logits = engine.evaluate(seen, seen + engine.group, images[:size]).logits
            assert logits.shape[:2] == (size, engine.group)
            expected = reference.evaluate(seen, seen + engine.group, images[:size]).logits
            assert np.abs(logits - expected).max() / max(1, np.abs(expected).max()) < 1e-4
        outputs = everything(engine, images[:size])
        assert difference(outputs, everything(reference, images[:size])) < 1e-4
        assert outputs.features.shape[:2] == (size, chosen.manifest.members.group)


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
    (tmp_path / bundles.GROUP_GRAPH).write_bytes(b"nonsense")
    shutil.copy(bundle.path / bundles.WEIGHTS, tmp_path)
    with pytest.raises(EngineError, match="onnxruntime refuses it") as error:
        onnx.open_runtime(replace(bundle, path=tmp_path), "cpu", 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"nonsense", None], ids=["damaged", "missing"])
def test_weights_that_are_none(bundle, tmp_path, content):
    if content is not None:
        (tmp_path / bundles.WEIGHTS).write_bytes(content)
    with pytest.raises(EngineError, match=r"weights\.safetensors: "):
        onnx.open_runtime(replace(bundle, path=tmp_path), "cpu", 1)


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
