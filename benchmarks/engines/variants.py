"""All members of a bundle in each engine and precision, as functions of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.engines import graphs
from benchmarks.engines.graphs import Floats
from models.bundle import GRAPH, Bundle
from models.networks import Forward, Parameters
from models.outputs import Ensemble, Outputs
from service.runtime import Runtime, everything, onnx
from service.runtime.torch import open_runtime
from training.export import session

SERVED = "onnxruntime, groups (as served)"
REASON_LENGTH = 200


@dataclass(frozen=True)
class Source:
    """What variants are made of.

    Attributes:
        bundle: the bundle.
        calibration: prepared training images, [n, C, H, W].
        folder: for graphs.
    """

    bundle: Bundle
    calibration: Floats
    folder: Path

    @cached_property
    def graphs(self) -> list[Path]:
        """fp32 graphs of the groups."""
        return graphs.own_graphs(self.bundle, self.folder)


def _served(source: Source) -> Ensemble:
    return of_runtime(onnx.open_runtime(source.bundle, "cpu", 1))


def _whole(source: Source) -> Ensemble:
    return of_graphs([source.bundle.path / GRAPH], source.bundle)


def _int8_products(source: Source) -> Ensemble:
    return of_graphs([graphs.int8_products(graph) for graph in source.graphs], source.bundle)


def _int8_convolutions(source: Source) -> Ensemble:
    convert = partial(graphs.int8_convolutions, images=source.calibration)
    return of_graphs([convert(graph) for graph in source.graphs], source.bundle)


def _fp16(source: Source) -> Ensemble:
    return of_graphs([graphs.fp16(graph) for graph in source.graphs], source.bundle)


def _torch_served(source: Source) -> Ensemble:
    return of_runtime(open_runtime(source.bundle, "cpu", 1))


def _torch(
    source: Source,
    layout: torch.memory_format = torch.channels_last,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> Ensemble:
    runtime = open_runtime(source.bundle, "cpu", 1)
    forward = runtime.network.forward
    if compiled:
        forward = torch.compile(forward, dynamic=False)
    groups = [group for step in runtime.steps for group in step]
    return of_torch(forward, groups, layout, dtype)


OPENERS: Mapping[str, Callable[[Source], Ensemble]] = {
    SERVED: _served,
    "onnxruntime, ensemble.onnx": _whole,
    "onnxruntime, int8 products (dynamic)": _int8_products,
    "onnxruntime, int8 convolutions (static)": _int8_convolutions,
    "onnxruntime, fp16": _fp16,
    "torch (as served)": _torch_served,
    "torch, contiguous": partial(_torch, layout=torch.contiguous_format),
    "torch, channels-last": _torch,
    "torch, channels-last, compiled": partial(_torch, compiled=True),
    "torch, channels-last, bfloat16": partial(_torch, dtype=torch.bfloat16),
}


def open_variants(
    source: Source, batches: Sequence[Floats]
) -> tuple[dict[str, Ensemble], dict[str, str]]:
    """Open every variant, and show it batches of all sizes that it will see.

    Returns:
        The variants that work, and why others do not, by name.
    """
    variants, failures = dict[str, Ensemble](), dict[str, str]()
    for name, open_one in OPENERS.items():
        try:
            variant = open_one(source)
            for images in batches:
                variant(images)
        except Exception as error:  # engines and compilers fail in ways of their own
            if name == SERVED:
                raise
            failures[name] = " ".join(str(error).split())[:REASON_LENGTH]
        else:
            variants[name] = variant
    return variants, failures


def of_runtime(runtime: Runtime) -> Ensemble:
    """All members of a runtime."""
    return partial(everything, runtime)


def of_graphs(files: Sequence[Path], bundle: Bundle) -> Ensemble:
    """All members, in sessions on graphs that share them out, evaluated as the service does."""
    members, sessions = bundle.manifest.members, tuple(session(file) for file in files)
    together = members.count // len(sessions)
    return of_runtime(onnx.OnnxRuntime(sessions, {}, members.group, "cpu", members.count, together))


def of_torch(
    forward: Forward,
    groups: Sequence[Parameters],
    layout: torch.memory_format,
    dtype: torch.dtype,
) -> Ensemble:
    """All members by torch, on images in this layout and precision."""
    cast = [{name: values.to(dtype) for name, values in group.items()} for group in groups]

    @torch.inference_mode()
    def evaluate(images: Floats) -> Outputs:
        # Unlike contiguous(), clone() also lays out images of one channel.
        batch = torch.from_numpy(images).to(dtype).clone(memory_format=layout)
        logits, features = zip(*(forward(group, batch) for group in cast), strict=True)
        return Outputs(_array(torch.cat(logits, dim=1)), _array(features[0]))

    return evaluate


def _array(values: torch.Tensor) -> Floats:
    return np.asarray(values.float().numpy(), dtype=np.float32)
