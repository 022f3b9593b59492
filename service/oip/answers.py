"""Results → output tensors, and what a model is said to take and to give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from service.oip.tensors import BYTES, DATATYPES, Tensor, to_bytes, to_list
from service.repository import Model
from service.results import Json, encode, model_info

PLATFORM = "onnx_onnxv1"
INPUT = "images"


@dataclass(frozen=True)
class Output:
    """One output: its datatype, how it is read from a result, and whether there is one a class."""

    datatype: str
    read: Callable[[Json], Any]
    by_class: bool = False


def _uncertainty(name: str) -> Output:
    return Output("FP32", lambda result: result["uncertainty"][name])


def _sets(result: Json) -> list[bool]:
    return [label in result["prediction_set"] for label in result["probabilities"]]


OUTPUTS: Mapping[str, Output] = {
    "probabilities": Output("FP32", lambda result: list(result["probabilities"].values()), True),
    "label": Output(BYTES, lambda result: result["label"].encode()),
    "decision": Output(BYTES, lambda result: result["decision"].encode()),
    "reasons": Output(BYTES, lambda result: "+".join(result["reasons"]).encode()),
    "predictive_entropy": _uncertainty("predictive_entropy"),
    "expected_entropy": _uncertainty("expected_entropy"),
    "mutual_information": _uncertainty("mutual_information"),
    "ood_score": Output("FP32", lambda result: result["ood"]["score"]),
    "ood_p_value": Output("FP64", lambda result: result["ood"]["p_value"]),
    "ood_flag": Output("BOOL", lambda result: result["ood"]["flag"]),
    "prediction_set": Output("BOOL", _sets, True),
    "members_used": Output("INT32", lambda result: result["members_used"]),
}


def offered(model: Model) -> dict[str, Output]:
    """The outputs that a model has: a bundle without prediction sets gives none."""
    without = {"prediction_set"} if model.manifest.prediction_sets is None else set()
    return {name: output for name, output in OUTPUTS.items() if name not in without}


def metadata(model: Model) -> Json:
    """Name, version and tensors of a model, as `ModelMetadata` has it."""
    manifest = model.manifest
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": PLATFORM,
        "inputs": [
            {"name": INPUT, "datatype": "UINT8", "shape": [-1, -1, -1, manifest.input.channels]}
        ],
        "outputs": [
            {
                "name": name,
                "datatype": output.datatype,
                "shape": [-1, len(manifest.labels)] if output.by_class else [-1],
            }
            for name, output in offered(model).items()
        ],
        "properties": {
            "digest": model_info(model)["digest"],
            "labels": orjson.dumps(manifest.labels).decode(),
            "policies": orjson.dumps(list(manifest.policies)).decode(),
        },
    }


def write_answer(
    head: Json, results: Sequence[Json], outputs: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """The body of an answer.

    Args:
        head: what it says beside the outputs.
        results: one an image, all of them answered.
        outputs: name of each, and whether it is sent as bytes.

    Returns:
        The body, and how many bytes of it are JSON; None if all.
    """
    described: list[Json] = []
    parts: list[bytes] = []
    for name, binary in outputs.items():
        tensor = _tensor(name, results)
        content: Json = {"name": name, "datatype": tensor.datatype, "shape": tensor.shape}
        if binary:
            parts.append(to_bytes(tensor))
            content["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            content["data"] = to_list(tensor)
        described.append(content)
    document = encode(head | {"outputs": described})
    return (b"".join([document, *parts]), len(document)) if parts else (document, None)


def _tensor(name: str, results: Sequence[Json]) -> Tensor:
    output = OUTPUTS[name]
    values = [output.read(result) for result in results]
    if output.datatype == BYTES:
        return Tensor(name, BYTES, (len(values),), values)
    array = np.array(values, DATATYPES[output.datatype])
    return Tensor(name, output.datatype, array.shape, array.ravel())
