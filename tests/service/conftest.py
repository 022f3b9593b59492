"""A tiny bundle that needs no training: M linear classifiers of 8 x 8 images."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from fastapi import FastAPI
from onnx import TensorProto, helper
from PIL import Image
from safetensors.numpy import save_file

from models import bundle as bundles
from models.density import ClassGaussians, ClassSubspaces
from models.detectors import Detectors
from models.features import FeatureNeighbours, FeatureSubspaces, RelativeMahalanobis
from models.fusion import Surprise
from models.manifest import (
    CalibrationSpec,
    CertificateSpec,
    Check,
    DataSource,
    Manifest,
    Members,
    NetworkSpec,
    PosteriorSpec,
    PredictionSetSpec,
    Verdict,
)
from models.orientation import oriented_gradients
from models.outputs import FEATURE_MEMBERS, Outputs
from models.policy import Policy
from models.prediction_sets import PredictionSets, lac
from models.preprocessing import InputSpec, grey, prepare
from models.shape import shape_statistics
from models.uncertainty import summarise
from service.app import create_app
from service.repository import Model, open_model
from service.settings import Settings

M, K, SIDE, CALIBRATION = 4, 3, 8, 99
SET_COVERAGE = 0.6
LABELS = ("ant", "bee", "cat")
FUSED = ("mutual_information", "shape", "strokes")
SPEC = InputSpec(
    channels=1, height=SIDE, width=SIDE, polarity="light-on-dark", mean=(0.1,), std=(0.5,)
)


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shared = rng.normal(0, 0.6, (1, K, SIDE * SIDE))
    return {
        "dense1.weight": (shared + rng.normal(0, 0.1, (M, K, SIDE * SIDE))).astype(np.float32),
        "dense1.bias": rng.normal(0, 0.1, (M, K)).astype(np.float32),
    }


def _outputs(weights: dict[str, np.ndarray], images: np.ndarray) -> Outputs:
    flat = images.reshape(len(images), -1)
    logits = np.einsum("bf,mkf->bmk", flat, weights["dense1.weight"]) + weights["dense1.bias"]
    return Outputs(logits.astype(np.float32), _features(images))


def _features(images: np.ndarray) -> np.ndarray:
    """A network without a hidden layer judges by the image itself."""
    return np.repeat(images.reshape(len(images), 1, -1), FEATURE_MEMBERS, axis=1)


def _external(name: str, shape: tuple[int, ...], file: Path) -> onnx.TensorProto:
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        begin, end = json.loads(stream.read(size))[name]["data_offsets"]
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", file.name),
        ("offset", str(8 + size + begin)),
        ("length", str(end - begin)),
    ):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _graph(weights: dict[str, np.ndarray], file: Path) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Einsum", ["flat", "dense1.weight"], ["product"], equation="bf,mkf->bmk"),
        helper.make_node("Add", ["product", "dense1.bias"], ["logits"]),
        helper.make_node("Unsqueeze", ["flat", "one"], ["feature"]),
        helper.make_node("Expand", ["feature", "members"], ["features"]),
    ]
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in {
            "images": ["batch", 1, SIDE, SIDE],
            "logits": ["batch", M, K],
            "features": ["batch", M, SIDE * SIDE],
        }.items()
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [values["images"]],
        [values["logits"], values["features"]],
        [
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("members", TensorProto.INT64, [3], [1, M, 1]),
            *(_external(name, array.shape, file) for name, array in weights.items()),
        ],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name="tests"
    )


def random_images(count: int, seed: int) -> np.ndarray:
    """uint8 [count, 8, 8, 1], dark at the border as the polarity wants it."""
    images = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 1), dtype=np.uint8)
    images[:, [0, -1]] = 0
    images[:, :, [0, -1]] = 0
    return images


def _detectors(weights: dict[str, np.ndarray]) -> Detectors:
    images = prepare(random_images(200, 3), SPEC)[0]
    pixels, outputs = grey(images, SPEC), _outputs(weights, images)
    prediction, features = summarise(outputs.logits), outputs.features
    classes = prediction.probabilities.argmax(axis=1)
    unfused = Detectors(
        ClassGaussians.fit(shape_statistics(pixels), classes, K),
        ClassSubspaces.fit(oriented_gradients(pixels), classes, K, rank=10),
        FeatureSubspaces.fit(features, classes, K, rank=5),
        FeatureNeighbours.fit(features, classes, K),
        RelativeMahalanobis.fit(features, classes, K),
        {},
    )
    scores = unfused.single_scores(prediction, features, pixels, classes)
    return replace(unfused, surprises={name: Surprise.fit(scores[name]) for name in FUSED})


def _publish(
    target: Path,
    passed: bool = True,
    golden_shift: float = 0.0,
    feature_shift: float = 0.0,
    outputs: tuple[str, ...] = ("logits", "features"),
) -> Path:
    source = target.parent / "source"
    source.mkdir(parents=True)
    weights = _weights()
    save_file(weights, source / bundles.WEIGHTS)
    graph = _graph(weights, source / bundles.WEIGHTS)
    for output in graph.graph.output:
        if output.name not in outputs:
            graph.graph.output.remove(output)
    onnx.save(graph, source / bundles.GRAPH)
    detectors = _detectors(weights)
    held_out = prepare(random_images(CALIBRATION, 1), SPEC)[0]
    outputs_of_held_out = _outputs(weights, held_out)
    prediction = summarise(outputs_of_held_out.logits)
    scores = detectors.scores(prediction, outputs_of_held_out.features, grey(held_out, SPEC))
    classes = prediction.probabilities.argmax(axis=1)
    np.savez(source / bundles.CALIBRATION, **detectors.arrays(), **scores, classes=classes)
    labels = np.random.default_rng(4).integers(0, K, CALIBRATION)
    sets = PredictionSets.fit(prediction.probabilities, labels, SET_COVERAGE, lac)
    golden = random_images(5, 2)
    answers = _outputs(weights, prepare(golden, SPEC)[0])
    np.savez(
        source / bundles.GOLDEN,
        images=golden,
        logits=answers.logits + np.float32(golden_shift),
        features=answers.features + np.float32(feature_shift),
    )
    size = K * SIDE * SIDE + K
    manifest = Manifest(
        name="tiny",
        version=target.name,
        labels=LABELS,
        input=SPEC,
        network=NetworkSpec(
            name="mlp", channels=(), kernel=5, hidden=(), activation="relu", num_weights=size
        ),
        members=Members(count=M, group=3, chains=(0,) * M, samples=tuple(range(M))),
        posterior=PosteriorSpec(num_data=100, temperature=1.0, prior_std={"dense1": 1.0}),
        sampler={"name": "none"},
        data=(DataSource(name="noise", part="all", role="train", size=100, sha256="0" * 64),),
        verdict=Verdict(checks={"r_hat": Check(value=1.0 if passed else 3.0, high=1.1)}),
        calibration=CalibrationSpec(
            size=CALIBRATION, seed=1, score="predictive_entropy", fused=FUSED
        ),
        policies={
            "default": Policy(alpha=0.05, min_probability=0.6),
            "strict": Policy(alpha=0.5, min_probability=0.99),
            "open": Policy(alpha=0.001, min_probability=0.0),
            "shapely": Policy(alpha=0.3, min_probability=0.0, score="shape"),
            "featured": Policy(alpha=0.3, min_probability=0.0, score="feature_subspaces"),
            "sure": Policy(alpha=0.3, min_probability=0.0, alpha_confidence=0.9),
            "by_class": Policy(alpha=0.3, min_probability=0.0, conditional_on="class"),
        },
        certificates={
            "strict": CertificateSpec(
                target_risk=0.3,
                confidence=0.9,
                calibration_size=CALIBRATION,
                alpha=0.5,
                threshold=0.99,
                accepted=33,
                errors=2,
                risk_bound=0.25,
                coverage_bound=0.125,
            )
        },
        prediction_sets=PredictionSetSpec(
            score="lac",
            coverage=SET_COVERAGE,
            calibration_size=CALIBRATION,
            threshold=sets.threshold,
        ),
        results={},
        libraries={},
        files={},
    )
    bundles.publish(source, manifest, target)
    return target


@pytest.fixture(scope="session")
def publish(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Publish a variant of the tiny bundle; returns its directory."""

    def make(**changes: Any) -> Path:
        return _publish(tmp_path_factory.mktemp("bundle") / "tiny" / "1", **changes)

    return make


@pytest.fixture(scope="session")
def bundle_path(publish: Callable[..., Path]) -> Path:
    return publish()


@pytest.fixture(scope="session")
def settings(bundle_path: Path) -> Settings:
    return Settings(
        bundle=bundle_path,
        device="cpu",
        threads=1,
        max_batch_images=4,
        max_queue_images=32,
        max_images_per_request=16,
        max_body_bytes=1_000_000,
        max_pixels=90_000,
    )


@pytest.fixture(scope="session")
def model(settings: Settings) -> Model:
    return open_model(settings)


@dataclass(frozen=True)
class FunctionRuntime:
    """A runtime whose logits are a function of the images; its features are the tiny bundle's."""

    function: Callable[[np.ndarray], np.ndarray]
    members: int = M
    name: str = "function"
    device: str = "cpu"

    def outputs(self, images: np.ndarray) -> Outputs:
        return Outputs(self.function(images), _features(images))


@pytest.fixture
def with_logits(model: Model) -> Callable[[Callable[[np.ndarray], np.ndarray]], Model]:
    """The tiny model with a function in place of its runtime."""

    def make(function: Callable[[np.ndarray], np.ndarray]) -> Model:
        return replace(model, runtime=FunctionRuntime(function))

    return make


class Client(httpx.AsyncClient):
    """A client of an application in this process."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(transport=httpx.ASGITransport(app), base_url="http://gate")
        self.app = app

    async def until_queued(self, images: int) -> None:
        """Let other tasks run until so many images wait."""
        for _ in range(10_000):
            if self.app.state.gate.scheduler.queued == images:
                return
            await asyncio.sleep(0)
        pytest.fail(f"never were {images} images waiting")


@asynccontextmanager
async def _started(app: FastAPI) -> AsyncIterator[Client]:
    async with app.router.lifespan_context(app), Client(app) as client:
        yield client


Start = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def start(settings: Settings, model: Model) -> Start:
    """Start an application with changed settings, or another model, and a client of it."""

    def make(other: Model | None = None, **changes: Any) -> AbstractAsyncContextManager[Client]:
        changed = settings.model_copy(update=changes)
        return _started(create_app(changed, other or model))

    return make


@pytest.fixture
async def client(start: Start) -> AsyncIterator[Client]:
    async with start() as client:
        yield client


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return random_images(12, 3)


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Pixels or a Pillow image as a file's bytes."""

    def make(picture: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture.squeeze())
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def png(images: np.ndarray, encode: Callable[..., bytes]) -> bytes:
    return encode(images[0])
