"""Graphs of one group of members with weights of its own, in fp32, int8 and fp16."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime import quantization
from onnxruntime.transformers.float16 import convert_float_to_float16
from safetensors.numpy import load_file

from models.bundle import GROUP_GRAPH, WEIGHTS, Bundle, initializer_name

Floats = NDArray[np.float32]

CALIBRATION_BATCH = 32
CONVOLUTIONS = ["Conv", "MaxPool", "Relu"]


def own_graphs(bundle: Bundle, folder: Path) -> list[Path]:
    """fp32 graphs of the bundle's groups in `folder`, each with its weights, ready to convert.

    What depends on weights alone is folded: a converter sees products with constants, as it must.
    """
    graph = onnx.load(bundle.path / GROUP_GRAPH, load_external_data=False)
    weights = {
        initializer_name(name): values for name, values in load_file(bundle.path / WEIGHTS).items()
    }
    members, files = bundle.manifest.members, []
    for first in range(0, members.count, members.group):
        for initializer in graph.graph.initializer:
            if initializer.name in weights:
                part = weights[initializer.name][first : first + members.group]
                initializer.CopyFrom(numpy_helper.from_array(part, initializer.name))
        files.append(folder / f"{first}.onnx")
        _fold(graph, files[-1])
    return files


def _fold(graph: onnx.ModelProto, target: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def int8_products(graph: Path) -> Path:
    """The same with its matrix products in int8, activations scaled as they come.

    The quantiser turns matrices for it, and must find no notes of the shape they had.
    """
    target = graph.with_suffix(".int8-products")
    model = onnx.load(graph)
    del model.graph.value_info[:]
    with _quiet():
        quantization.quantize_dynamic(model, target, op_types_to_quantize=["MatMul"])
    return target


def int8_convolutions(graph: Path, images: Floats) -> Path:
    """The same with its convolutional part in int8, activations scaled by prepared images.

    Weights are scaled channel by channel, and products in int8 stand between QuantizeLinear and
    DequantizeLinear (QDQ), which onnxruntime fuses.
    """
    target = graph.with_suffix(".int8-convolutions")
    with _quiet():
        quantization.quantize_static(
            graph,
            target,
            _Batches(images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=CONVOLUTIONS,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    return target


def fp16(graph: Path) -> Path:
    """The same with weights and activations in half precision; images and outputs stay fp32."""
    target = graph.with_suffix(".fp16")
    onnx.save(convert_float_to_float16(onnx.load(graph), keep_io_types=True), target)
    return target


class _Batches(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Images in batches, as the quantiser asks for them."""

    def __init__(self, images: Floats) -> None:
        self.batches = iter(
            np.split(images, range(CALIBRATION_BATCH, len(images), CALIBRATION_BATCH))
        )

    def get_next(self) -> dict[str, Floats] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice, which the root logger prints."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
