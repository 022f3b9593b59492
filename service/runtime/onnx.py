"""onnxruntime, on the CPU or a CUDA device."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from safetensors import SafetensorError
from safetensors.numpy import load_file

from models.bundle import (
    BLOCK_GRAPH,
    BLOCK_GROUPS,
    GRAPH,
    GROUP_GRAPH,
    OUTPUTS,
    WEIGHTS,
    Bundle,
    initializer_name,
)
from models.outputs import Outputs
from service.errors import EngineError
from service.runtime import Floats

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
INPUT = "images"
NONE: Mapping[str, Floats] = {}

_UNTOLD = np.zeros((0, 0, 0), dtype=np.float32)

# Images in one run for each thread: more would push what a layer gives the next out of a cache.
TOGETHER = 16

# Images for which a block of groups is quicker than the groups, one after the other.
FEW = 8

# Of a block's weights. A block saves nodes, not sums: of larger members it would save a small part
# of their time, for a second packed copy of their weights.
SMALL_BYTES = 8 << 20


@dataclass(frozen=True)
class OnnxRuntime:
    """Sessions on the bundle's graphs: of each group, and of each block of groups after the first.

    Attributes:
        sessions: of each group.
        weights: of all members, which the sessions look at.
        looked_at: first members, whose features are told.
        blocks: by the number of the first member; they say the same, to the bit, as their groups.
        together: images in one run, at most.
    """

    sessions: tuple[Any, ...]
    weights: Mapping[str, Floats]
    looked_at: int
    device: str
    members: int
    group: int
    blocks: Mapping[int, Any] = field(default_factory=dict)
    together: int = TOGETHER
    name: str = "onnx"

    @property
    def block(self) -> int:
        """Members in a block."""
        return BLOCK_GROUPS * self.group

    def evaluate(self, seen: int, until: int, images: Floats) -> Outputs:
        """Outputs on images [B, C, H, W] of the members from number `seen` up to before `until`.

        On a CPU they are the same, to the bit, in whatever batch an image comes.
        """
        count = len(images)
        if count == 1 and self._adds_up_otherwise_alone:
            images = np.repeat(images, 2, axis=0)
        runs = math.ceil(len(images) / self.together)
        bounds = [len(images) * run // runs for run in range(runs + 1)]
        parts = [images[first:last] for first, last in pairwise(bounds)]
        features, logits = _UNTOLD, []
        for session in self._asked(seen, until, few=len(images) <= FEW):
            names = OUTPUTS if session is self.sessions[0] else OUTPUTS[:1]
            outputs = [session.run(names, {INPUT: part}) for part in parts]
            logits.append(_joined([each[0] for each in outputs], 0))
            if len(names) > 1:
                features = _joined([each[1] for each in outputs], 0)
        return Outputs(_joined(logits, 1)[:count], features[:count, : self.looked_at])

    def _asked(self, seen: int, until: int, few: bool) -> Iterator[Any]:
        """The sessions of these members, in their order."""
        while seen < until:
            whole = self.blocks.get(seen) if few and seen + self.block <= until else None
            yield whole or self.sessions[seen // self.group]
            seen += self.block if whole else self.group

    @cached_property
    def _adds_up_otherwise_alone(self) -> bool:
        """Whether an image alone does not get, to the bit, what it gets in company.

        A product of matrices of which one has a single row may be summed in an order of its own.
        """
        session = self.sessions[0]
        shape = (4, *session.get_inputs()[0].shape[1:])
        images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        together = session.run(OUTPUTS, {INPUT: images})
        alone = [session.run(OUTPUTS, {INPUT: images[[index]]}) for index in range(len(images))]
        joined = (np.concatenate(each) for each in zip(*alone, strict=True))
        return not all(map(np.array_equal, joined, together))


def _joined(parts: list[Floats], axis: int) -> Floats:
    """Parts side by side; one alone is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)


def open_runtime(bundle: Bundle, device: str, threads: int) -> OnnxRuntime:
    """Open the bundle's graphs on `device`, "cpu" or "cuda".

    A CPU evaluates the members in groups, each in a session of its own on the graph of one group;
    all share one copy of the weights. For a few images, small members are evaluated in blocks, in
    sessions that pack their weights once more. A GPU evaluates all of them in one session.

    Raises:
        EngineError: this build of onnxruntime cannot use the device, or a graph is none of ours.
    """
    if device == "cuda" and CUDA not in ort.get_available_providers():
        raise EngineError("this onnxruntime has no CUDA provider (onnxruntime-gpu has)")
    members, weights = bundle.manifest.members, dict[str, Floats]()
    if device == "cuda":
        file = bundle.path / GRAPH
        sessions = [_session(file, _options(threads), [(CUDA, {"use_tf32": "0"}), CPU])]
        if sessions[0].get_providers()[0] != CUDA:
            raise EngineError("onnxruntime found no CUDA device that it can use")
    else:
        file, weights = bundle.path / GROUP_GRAPH, _weights(bundle)
        sessions = [
            _session(file, _options(threads, weights, first, members.group), [CPU])
            for first in range(0, members.count, members.group)
        ]
    _check_interface(sessions[0], file)
    runtime = OnnxRuntime(
        tuple(sessions),
        weights,
        members.group,
        device,
        members.count,
        members.count // len(sessions),
        together=TOGETHER * threads if device == "cpu" else sys.maxsize,
    )
    if device == "cuda":
        return runtime
    return _with_blocks(runtime, bundle.path / BLOCK_GRAPH, threads)


def _with_blocks(runtime: OnnxRuntime, graph: Path, threads: int) -> OnnxRuntime:
    """The same with blocks, if there is a graph of them, they are small, and they say the same."""
    block, weights = runtime.block, runtime.weights
    size = sum(values[:block].nbytes for values in weights.values())
    if not graph.exists() or size > SMALL_BYTES:
        return runtime
    starts = range(runtime.group, runtime.members - block + 1, block)
    quicker = replace(
        runtime,
        blocks={
            first: _session(graph, _options(threads, weights, first, block), [CPU])
            for first in starts
        },
    )
    shape = (FEW, *runtime.sessions[0].get_inputs()[0].shape[1:])
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    try:
        same = all(
            np.array_equal(
                quicker.evaluate(0, runtime.members, images[:count]).logits,
                runtime.evaluate(0, runtime.members, images[:count]).logits,
            )
            for count in (1, 2, FEW)
        )
    except Exception as error:  # as above
        raise EngineError(f"{graph}: onnxruntime fails on it: {_one_line(error)}") from error
    return quicker if same else runtime


def _options(
    threads: int, weights: Mapping[str, Floats] = NONE, first: int = 0, group: int = 0
) -> ort.SessionOptions:
    """Options of a session, with the weights of `group` members from `first` on, if given."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads would take the CPU from the event loop between two batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if weights:
        _share_memory()
        options.add_session_config_entry("session.use_env_allocators", "1")
        parts = [
            ort.OrtValue.ortvalue_from_numpy(values[first : first + group])
            for values in weights.values()
        ]
        options.add_external_initializers(list(weights), parts)
    return options


@cache
def _share_memory() -> None:
    """Give all sessions of the process one arena: they run in turns, and need it one at a time."""
    kinds = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    ort.create_and_register_allocator(ort.OrtMemoryInfo("Cpu", *kinds), None)


def _session(graph: Path, options: ort.SessionOptions, providers: list[Any]) -> Any:
    try:
        return ort.InferenceSession(str(graph), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise EngineError(f"{graph}: onnxruntime refuses it: {_one_line(error)}") from error


def _weights(bundle: Bundle) -> dict[str, Floats]:
    """Stacked weights [M, ...] by the names of the graph's initialisers."""
    file = bundle.path / WEIGHTS
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise EngineError(f"{file}: {error}") from error
    return {
        initializer_name(name): np.ascontiguousarray(values, dtype=np.float32)
        for name, values in weights.items()
    }


def _check_interface(session: Any, graph: Path) -> None:
    inputs = [entry.name for entry in session.get_inputs()]
    outputs = [entry.name for entry in session.get_outputs()]
    if inputs != [INPUT] or not set(OUTPUTS) <= set(outputs):
        raise EngineError(
            f"{graph}: takes {inputs} and gives {outputs}, expected {[INPUT]} and {[*OUTPUTS]}"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
