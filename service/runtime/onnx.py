"""onnxruntime, on the CPU or a CUDA device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from models.bundle import GRAPH, Bundle
from models.outputs import FEATURE_MEMBERS, Outputs
from service.errors import EngineError
from service.runtime import Floats

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
INPUT = "images"
OUTPUTS = ["logits", "features"]


@dataclass(frozen=True)
class OnnxRuntime:
    """A session on the bundle's graph."""

    session: Any
    device: str
    members: int
    name: str = "onnx"

    def outputs(self, images: Floats) -> Outputs:
        """Outputs of images [B, C, H, W]."""
        logits, features = self.session.run(OUTPUTS, {INPUT: images})
        return Outputs(logits, features[:, :FEATURE_MEMBERS])


def open_runtime(bundle: Bundle, device: str, threads: int) -> OnnxRuntime:
    """Open the bundle's graph on `device`, "cpu" or "cuda".

    Raises:
        EngineError: this build of onnxruntime cannot use the device, or the graph is none of ours.
    """
    if device == "cuda" and CUDA not in ort.get_available_providers():
        raise EngineError("this onnxruntime has no CUDA provider (onnxruntime-gpu has)")
    providers: list[Any] = [(CUDA, {"use_tf32": "0"}), CPU] if device == "cuda" else [CPU]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads would take the CPU from the event loop between two batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    graph = bundle.path / GRAPH
    try:
        session = ort.InferenceSession(str(graph), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise EngineError(f"{graph}: onnxruntime refuses it: {_one_line(error)}") from error
    if device == "cuda" and session.get_providers()[0] != CUDA:
        raise EngineError("onnxruntime found no CUDA device that it can use")
    _check_interface(session, graph)
    return OnnxRuntime(session, device, bundle.manifest.members.count)


def _check_interface(session: Any, graph: Path) -> None:
    inputs = [entry.name for entry in session.get_inputs()]
    outputs = [entry.name for entry in session.get_outputs()]
    if inputs != [INPUT] or not set(OUTPUTS) <= set(outputs):
        raise EngineError(
            f"{graph}: takes {inputs} and gives {outputs}, expected {[INPUT]} and {OUTPUTS}"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
