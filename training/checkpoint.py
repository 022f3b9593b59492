"""A chain on disk: its kept weights, and the state from which it continues.

    NN.samples       the kept weight vectors, float32 little-endian, one after the other; appended
    NN.safetensors   everything else, replaced atomically after every epoch

The state says how many weight vectors count, and their checksums. What was appended after the last
state is cut off on resumption: a chain that was killed at any moment goes on bit-identically, and
its memory does not grow with the number of samples.
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.observables import Trace

Phase = Literal["burn_in", "sampling", "half_step"]

SAMPLER = "sampler."
PLAIN = ("warm", "residuals", "noise_ratio", "curvature", "checksums", "step_sizes")
PHASES: tuple[Phase, ...] = ("burn_in", "sampling", "half_step")
FLOAT = np.dtype("<f4")


class ChainError(Exception):
    """A chain that cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class ChainState:
    """A chain after `epoch` epochs.

    Attributes:
        epoch: epochs finished, the warm start included.
        sampler: tensors of the optimiser or sampler state by name; "position" is among them.
        traces: what was observed in each phase after the warm start.
        warm: weights at the end of the warm start, [D].
        residuals: q of every training image (`training.minibatches`), [N]; [0] if they are drawn
            alike.
        noise_ratio: minibatch over injected noise per layer, for SGLD with a step size and
            temperature of 1, measured at the first sampling step, [L]; NaN before that.
        curvature: largest eigenvalue of the Hessian of Ū there, []; NaN before that.
        checksums: CRC-32 of every kept weight vector, [s].
        step_sizes: η at every kept weight vector, [s].
    """

    epoch: int
    sampler: dict[str, Tensor]
    traces: dict[Phase, Trace]
    warm: Tensor
    residuals: Tensor
    noise_ratio: Tensor
    curvature: Tensor
    checksums: Tensor
    step_sizes: Tensor


def path_of(run: Path, chain: int) -> Path:
    """The checkpoint of one chain in a run directory."""
    return run / "chains" / f"{chain:02d}.safetensors"


def write(checkpoint: Path, state: ChainState, samples: list[Tensor]) -> ChainState:
    """Append newly kept weights [D], then replace the state; returns the state that counts them.

    Raises:
        ChainError: they cannot be written; the older state and its samples are untouched.
    """
    new = [np.ascontiguousarray(sample.numpy(), FLOAT) for sample in samples]
    sums = torch.tensor([zlib.crc32(sample.data) for sample in new], dtype=torch.int64)
    state = replace(state, checksums=torch.cat([state.checksums, sums]))
    temporary = checkpoint.with_suffix(".tmp")
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        _append(samples_of(checkpoint), len(state.checksums) - len(new), new)
        metadata = {"epoch": str(state.epoch)}
        save_file(_flatten(state), temporary, metadata=metadata)
        _synchronise(temporary)
        os.replace(temporary, checkpoint)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise ChainError(
            f"{checkpoint}: cannot be written ({error}): make room and resume"
        ) from error
    return state


def read(checkpoint: Path, num_weights: int) -> ChainState:
    """Read a chain's state, for a network of D weights.

    Raises:
        ChainError: it is unreadable, or belongs to another network.
    """
    try:
        with safe_open(checkpoint, framework="pt") as archive:
            names = list(archive.keys())
            tensors = {name: archive.get_tensor(name) for name in names}
            state = _unflatten(int(archive.metadata()["epoch"]), tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ChainError(
            f"{checkpoint}: not a readable checkpoint ({error}): delete it to start this chain anew"
        ) from error
    if state.warm.shape != (num_weights,):
        raise ChainError(f"{checkpoint}: made for another network: use another --out")
    return state


def samples_of(checkpoint: Path) -> Path:
    """The file of a chain's kept weights."""
    return checkpoint.with_suffix(".samples")


def read_samples(checkpoint: Path, state: ChainState) -> NDArray[np.float32]:
    """The kept weights [S, D] of a chain, mapped from disk and checked one by one.

    Raises:
        ChainError: they are missing, too few, or not what was written.
    """
    file, count = samples_of(checkpoint), len(state.checksums)
    size = len(state.warm)
    try:
        samples = np.memmap(file, FLOAT, mode="r", shape=(count, size))
    except (OSError, ValueError) as error:
        raise ChainError(
            f"{file}: does not hold {count} samples ({error}): delete it and {checkpoint} "
            "to run this chain anew"
        ) from error
    for index, expected in enumerate(state.checksums.tolist()):
        if zlib.crc32(np.ascontiguousarray(samples[index]).data) != expected:
            raise ChainError(
                f"{file}: sample {index} is damaged: delete it and {checkpoint} "
                "to run this chain anew"
            )
    return samples


def _append(file: Path, kept: int, new: list[NDArray[np.float32]]) -> None:
    """Cut `file` after its first `kept` weight vectors, and append the new ones."""
    if not new:
        return
    with open(file, "r+b" if file.exists() else "x+b") as stream:
        end = kept * new[0].nbytes
        if stream.seek(0, os.SEEK_END) < end:
            raise OSError(f"{file} is shorter than the {kept} samples it should hold")
        stream.seek(end)
        stream.truncate()
        for sample in new:
            stream.write(sample.data)
        stream.flush()
        os.fsync(stream.fileno())


def _synchronise(file: Path) -> None:
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())


def _flatten(state: ChainState) -> dict[str, Tensor]:
    tensors = {f"{SAMPLER}{name}": tensor for name, tensor in state.sampler.items()}
    for name in PLAIN:
        tensors[name] = getattr(state, name)
    for phase, trace in state.traces.items():
        for item in fields(trace):
            tensors[f"{phase}.{item.name}"] = getattr(trace, item.name)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _unflatten(epoch: int, tensors: dict[str, Tensor]) -> ChainState:
    sampler = {
        name.removeprefix(SAMPLER): tensor
        for name, tensor in tensors.items()
        if name.startswith(SAMPLER)
    }
    traces = {
        phase: Trace(**{item.name: tensors[f"{phase}.{item.name}"] for item in fields(Trace)})
        for phase in PHASES
    }
    plain = [tensors[name] for name in PLAIN]
    return ChainState(epoch, sampler, traces, *plain)
