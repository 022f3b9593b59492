"""A tiny bundle that needs no training: three groups of two linear classifiers of 8 x 8 images."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from models import bundle as bundles
from models.density import ClassGaussians, ClassSubspaces
from models.detectors import Detectors
from models.features import FeatureNeighbours, FeatureSubspaces, RelativeMahalanobis
from models.fusion import Surprise
from models.manifest import (
    AgreementSpec,
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
from models.outputs import Outputs
from models.policy import Policy
from models.prediction_sets import PredictionSets, lac
from models.preprocessing import InputSpec, grey, prepare
from models.shape import shape_statistics
from models.uncertainty import summarise

M, GROUP, K, SIDE, CALIBRATION = 10, 2, 3, 8, 99
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


def outputs_of(weights: dict[str, np.ndarray], images: np.ndarray) -> Outputs:
    flat = images.reshape(len(images), -1)
    logits = np.einsum("bf,mkf->bmk", flat, weights["dense1.weight"]) + weights["dense1.bias"]
    return Outputs(logits.astype(np.float32), features_of(images))


def features_of(images: np.ndarray) -> np.ndarray:
    """A network without a hidden layer judges by the image itself."""
    return np.repeat(images.reshape(len(images), 1, -1), GROUP, axis=1)


def _external(name: str, shape: tuple[int, ...], file: Path) -> onnx.TensorProto:
    """A reference to the weights of the first members in the file."""
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        begin, _ = json.loads(stream.read(size))[name]["data_offsets"]
    identifier = name.replace(".", "_")
    tensor = TensorProto(name=identifier, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", file.name),
        ("offset", str(8 + size + begin)),
        ("length", str(4 * math.prod(shape))),
    ):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _graph(weights: dict[str, np.ndarray], members: int, file: Path) -> onnx.ModelProto:
    """The graph of the first members."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Einsum", ["flat", "dense1_weight"], ["product"], equation="bf,mkf->bmk"),
        helper.make_node("Add", ["product", "dense1_bias"], ["logits"]),
        helper.make_node("Unsqueeze", ["flat", "one"], ["feature"]),
        helper.make_node("Expand", ["feature", "members"], ["features"]),
    ]
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in {
            "images": ["batch", 1, SIDE, SIDE],
            "logits": ["batch", members, K],
            "features": ["batch", members, SIDE * SIDE],
        }.items()
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [values["images"]],
        [values["logits"], values["features"]],
        [
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("members", TensorProto.INT64, [3], [1, members, 1]),
            *(
                _external(name, (members, *array.shape[1:]), file)
                for name, array in weights.items()
            ),
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
    pixels, outputs = grey(images, SPEC), outputs_of(weights, images)
    prediction, features = summarise(outputs.logits[:, :GROUP]), outputs.features
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


def publish(
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
    for file, count in ((bundles.GRAPH, M), (bundles.GROUP_GRAPH, GROUP)):
        graph = _graph(weights, count, source / bundles.WEIGHTS)
        for output in graph.graph.output:
            if output.name not in outputs:
                graph.graph.output.remove(output)
        onnx.save(graph, source / file)
    detectors = _detectors(weights)
    held_out = prepare(random_images(CALIBRATION, 1), SPEC)[0]
    outputs_of_held_out = outputs_of(weights, held_out)
    prediction = summarise(outputs_of_held_out.logits[:, :GROUP])
    scores = detectors.scores(prediction, outputs_of_held_out.features, grey(held_out, SPEC))
    classes = prediction.probabilities.argmax(axis=1)
    np.savez(source / bundles.CALIBRATION, **detectors.arrays(), **scores, classes=classes)
    labels = np.random.default_rng(4).integers(0, K, CALIBRATION)
    sets = PredictionSets.fit(prediction.probabilities, labels, SET_COVERAGE, lac)
    golden = random_images(5, 2)
    answers = outputs_of(weights, prepare(golden, SPEC)[0])
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
        members=Members(count=M, group=GROUP, chains=(0,) * M, samples=tuple(range(M))),
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
            "blended": Policy(alpha=0.3, min_probability=0.0, score="fused"),
            "sure": Policy(alpha=0.3, min_probability=0.0, alpha_confidence=0.9),
            "by_class": Policy(alpha=0.3, min_probability=0.0, conditional_on="class"),
            "quick": Policy(alpha=0.3, min_probability=0.6, members="confident", settled_at=0.96),
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
            ),
            "quick": CertificateSpec(
                target_risk=0.2,
                confidence=0.9,
                calibration_size=CALIBRATION,
                alpha=0.3,
                threshold=0.6,
                accepted=66,
                errors=3,
                risk_bound=0.125,
                coverage_bound=0.5,
            ),
        },
        agreements={
            "quick": AgreementSpec(
                rate=0.125,
                confidence=0.95,
                calibration_size=CALIBRATION,
                differing=1,
                bound=0.0625,
                mean_members=2.5,
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
