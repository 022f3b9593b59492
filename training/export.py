"""Posterior samples → ONNX graphs, images to member logits and features.

`ensemble.onnx` evaluates all members, a group at a time, each group as grouped convolutions and a
matrix product for each member; `group.onnx` evaluates one group, the first unless a session is
given the weights of another; `block.onnx` three groups as one, and tells logits alone: a third of
the nodes, which is less work for a few images. It is not written where there are too few members.
None holds weights of its own: the initialisers are references into `weights.safetensors`, so the
bundle has one copy of every weight and the files cannot disagree.
"""

from __future__ import annotations

import json
import logging
import math
import os
import struct
import warnings
from collections.abc import Collection, Iterator, Sequence
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

from models.bundle import (
    BLOCK_GRAPH,
    BLOCK_GROUPS,
    GRAPH,
    GROUP_GRAPH,
    OUTPUTS,
    WEIGHTS,
    initializer_name,
)
from models.networks import Network
from models.outputs import Ensemble, Outputs

TOLERANCE = 1e-4


class ExportError(Exception):
    """A graph that does not answer as the network does."""


class _Ensemble(nn.Module):
    """All M members, `group` at a time, as one module with stacked parameters [M, ...].

    It tells the first of "logits" and "features", as many as there are `outputs`.
    """

    def __init__(
        self, network: Network, positions: Tensor, group: int, outputs: Sequence[str]
    ) -> None:
        super().__init__()
        self.network = network
        self.group = group
        self.outputs = outputs
        self.stacked = network.unflatten(positions)
        for name, value in self.stacked.items():
            self.register_buffer(initializer_name(name), value)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
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
        return (torch.cat(logits, dim=1), torch.cat(features, dim=1))[: len(self.outputs)]


def export(
    network: Network, positions: NDArray[np.float32], group: int, folder: Path, images: Tensor
) -> float:
    """Write the graphs and `weights.safetensors` for weight vectors [M, D] into `folder`.

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
    block = BLOCK_GROUPS * group
    ensembles = {
        GRAPH: _Ensemble(network, stacked, group, OUTPUTS),
        GROUP_GRAPH: _Ensemble(network, stacked[:group], group, OUTPUTS),
    }
    if len(stacked) >= group + block:
        ensembles[BLOCK_GRAPH] = _Ensemble(network, stacked[:block], block, OUTPUTS[:1])
    else:
        (folder / BLOCK_GRAPH).unlink(missing_ok=True)
    differences = {
        name: _write(ensemble, folder / name, images) for name, ensemble in ensembles.items()
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


def _write(ensemble: _Ensemble, file: Path, images: Tensor) -> float:
    graph = _trace(ensemble.eval(), images[:3])
    _refer_to_weights(graph, file.with_name(WEIGHTS))
    onnx.save(graph, file)
    onnx.checker.check_model(str(file))
    return _largest_difference(ensemble, file, images)


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
            output_names=list(ensemble.outputs),
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
        of_all, features_of_all = graph.run(OUTPUTS, batch)
        logits.append(of_all)
        features.append(features_of_all[:, :group].copy())
    return Outputs(np.concatenate(logits), np.concatenate(features))


def open_ensemble(graph: Path, group: int, threads: int = 1) -> Ensemble:
    """The graph at this path, with the features of the first `group` members."""
    return partial(member_outputs, session(graph, threads), group)


@torch.no_grad()
def _largest_difference(ensemble: _Ensemble, graph: Path, images: Tensor) -> float:
    doubled = {name: value.double() for name, value in ensemble.stacked.items()}
    expected = ensemble.network.forward(doubled, images.double())
    engine = session(graph)
    difference = 0.0
    for batch_size in (1, 7, 32, len(images)):
        array = images[:batch_size].contiguous().numpy()
        outputs = engine.run(ensemble.outputs, {"images": array})
        for actual, target in zip(outputs, expected, strict=False):
            # np.maximum, unlike max, keeps what is not a number.
            error = np.abs(actual - target[:batch_size].numpy()).max()
            difference = float(np.maximum(difference, error))
    return difference
