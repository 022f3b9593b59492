"""Posterior samples → ONNX graphs, images to member logits and features.

`ensemble.onnx` evaluates all members, a group at a time, each group as grouped convolutions and a
matrix product for each member; `group.onnx` evaluates one group, the first unless a session is
given the weights of another. Neither holds weights of its own: the initialisers are references into
`weights.safetensors`, so the bundle has one copy of every weight and the files cannot disagree.
"""

from __future__ import annotations

import json
import logging
import math
import os
import struct
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxscript import optimizer
from safetensors.torch import save_file
from torch import Tensor, nn

from models.bundle import GRAPH, GROUP_GRAPH, WEIGHTS, initializer_name
from models.networks import Network
from models.outputs import Ensemble, Outputs

TOLERANCE = 1e-4


class ExportError(Exception):
    """A graph that does not answer as the network does."""


class _Ensemble(nn.Module):
    """All M members, `group` at a time, as one module with stacked parameters [M, ...]."""

    def __init__(self, network: Network, positions: Tensor, group: int) -> None:
        super().__init__()
        self.network = network
        self.group = group
        self.stacked = network.unflatten(positions)
        for name, value in self.stacked.items():
            self.register_buffer(initializer_name(name), value)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        members = len(next(iter(self.stacked.values())))
        outputs = [
            self.network.unrolled(
                {
                    name: getattr(self, initializer_name(name))[first : first + self.group]
                    for name in self.stacked
                },
                images,
            )
            for first in range(0, members, self.group)
        ]
        logits, features = zip(*outputs, strict=True)
        return torch.cat(logits, dim=1), torch.cat(features, dim=1)


def export(
    network: Network, positions: NDArray[np.float32], group: int, folder: Path, images: Tensor
) -> float:
    """Write both graphs and `weights.safetensors` for weight vectors [M, D] into `folder`.

    The graphs are compared with the network in double precision, on prepared images [n, C, H, W] in
    batches of several sizes.

    Returns:
        The largest absolute difference of a logit or a feature.

    Raises:
        ExportError: it exceeds 1e-4.
    """
    stacked = torch.from_numpy(np.ascontiguousarray(positions))
    parameters = {name: value.contiguous() for name, value in network.unflatten(stacked).items()}
    save_file(parameters, folder / WEIGHTS)
    differences = {
        name: _write(network, part, group, folder / name, images)
        for name, part in ((GRAPH, stacked), (GROUP_GRAPH, stacked[:group]))
    }
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            for each in differences:
                (folder / each).unlink()
            raise ExportError(
                f"{name}: onnxruntime and double precision differ by {difference:.2e}, "
                f"allowed is {TOLERANCE}"
            )
    return max(differences.values())


def _write(network: Network, positions: Tensor, group: int, file: Path, images: Tensor) -> float:
    graph = _trace(_Ensemble(network, positions, group).eval(), images[:3])
    _refer_to_weights(graph, file.with_name(WEIGHTS))
    onnx.save(graph, file)
    onnx.checker.check_model(str(file))
    return _largest_difference(network, positions, file, images)


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _trace(ensemble: _Ensemble, example: Tensor) -> onnx.ModelProto:
    """The ONNX graph of the ensemble, without the exporter's notes on source files."""
    with _quiet():
        program = torch.onnx.export(
            ensemble,
            (example,),
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=["images"],
            output_names=["logits", "features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        assert program is not None
        _fold_shapes(program.model, dict(ensemble.named_buffers()))
    graph = program.model_proto
    del graph.metadata_props[:]
    graph.doc_string = ""
    del graph.graph.metadata_props[:]
    for part in (*graph.graph.node, *graph.graph.value_info, *graph.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for value in (*graph.graph.input, *graph.graph.output):
        del value.metadata_props[:]
    return graph


def _fold_shapes(model: Any, weights: Collection[str]) -> None:
    """Fold the arithmetic on shapes; the weights, even of few numbers, are hidden and stay."""
    hidden = [value for name, value in model.graph.initializers.items() if name in weights]
    contents = [value.const_value for value in hidden]
    for value in hidden:
        value.const_value = None
    optimizer.optimize(model, input_size_limit=8, output_size_limit=8)
    for value, content in zip(hidden, contents, strict=True):
        value.const_value = content


def _refer_to_weights(graph: onnx.ModelProto, weights: Path) -> None:
    """Replace the content of each weight in the graph by its place in the safetensors file.

    A weight of the graph is of the first members in the file, of all or of fewer.

    Format: https://huggingface.co/docs/safetensors (8 bytes of header size, JSON, then the data).
    """
    with weights.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(size))
    places = {initializer_name(name): entry for name, entry in header.items()}
    for initializer in graph.graph.initializer:
        if (place := places.get(initializer.name)) is None:
            continue
        begin, _ = place["data_offsets"]
        length = 4 * math.prod(initializer.dims)
        initializer.ClearField("raw_data")
        del initializer.external_data[:]
        initializer.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (
            ("location", weights.name),
            ("offset", str(8 + size + begin)),
            ("length", str(length)),
        ):
            initializer.external_data.add(key=key, value=value)


def session(graph: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU for the graph at this path."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def member_outputs(
    graph: onnxruntime.InferenceSession,
    group: int,
    images: NDArray[np.float32],
    batch_size: int = 64,
) -> Outputs:
    """Outputs of prepared images [n, C, H, W], with the features of the first `group` members."""
    logits, features = [], []
    for first in range(0, len(images), batch_size):
        batch = {"images": images[first : first + batch_size]}
        of_all, features_of_all = graph.run(["logits", "features"], batch)
        logits.append(of_all)
        features.append(features_of_all[:, :group].copy())
    return Outputs(np.concatenate(logits), np.concatenate(features))


def open_ensemble(graph: Path, group: int, threads: int = 1) -> Ensemble:
    """The graph at this path, with the features of the first `group` members."""
    return partial(member_outputs, session(graph, threads), group)


@torch.no_grad()
def _largest_difference(network: Network, positions: Tensor, graph: Path, images: Tensor) -> float:
    expected, expected_features = network.forward(
        network.unflatten(positions.double()), images.double()
    )
    engine = session(graph)
    difference = 0.0
    for batch_size in (1, 7, 32, len(images)):
        array = images[:batch_size].contiguous().numpy()
        logits, features = engine.run(["logits", "features"], {"images": array})
        for actual, target in (
            (logits, expected[:batch_size]),
            (features, expected_features[:batch_size]),
        ):
            # np.maximum, unlike max, keeps what is not a number.
            difference = float(np.maximum(difference, np.abs(actual - target.numpy()).max()))
    return difference
