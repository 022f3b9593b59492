"""The state of a chain on disk: one safetensors file, written atomically."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

TENSORS = ("position", "momentum", "warm", "samples", "trace", "virial")


class ChainError(Exception):
    """A chain that cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class ChainState:
    """A chain after `epoch` epochs.

    Attributes:
        epoch: epochs finished, the warm start included.
        position: weights [D].
        momentum: of the warm start, [D].
        warm: weights at the end of the warm start, [D].
        samples: weights kept so far, [s, D].
        trace: observables on validation images at each trace point so far, [t, 3].
        virial: N ⟨θ∘∇Ū⟩ per layer, mean over the steps of each sampling epoch so far, [e, L].
    """

    epoch: int
    position: Tensor
    momentum: Tensor
    warm: Tensor
    samples: Tensor
    trace: Tensor
    virial: Tensor


def path_of(run: Path, chain: int) -> Path:
    """The checkpoint of one chain in a run directory."""
    return run / "chains" / f"{chain:02d}.safetensors"


def write(checkpoint: Path, state: ChainState) -> None:
    """Save a chain's state, replacing the older one only when the new one is complete.

    Raises:
        ChainError: it cannot be written.
    """
    tensors = {name: getattr(state, name).contiguous() for name in TENSORS}
    temporary = checkpoint.with_suffix(".tmp")
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"state": json.dumps({"epoch": state.epoch})})
        os.replace(temporary, checkpoint)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise ChainError(
            f"{checkpoint}: cannot be written ({error}): make room and resume"
        ) from error


def read(checkpoint: Path, num_weights: int) -> ChainState:
    """Read a chain's state, for a network of D weights.

    Raises:
        ChainError: it is unreadable, or belongs to another network.
    """
    try:
        with safe_open(checkpoint, framework="pt") as archive:
            metadata = archive.metadata() or {}
            tensors = {name: archive.get_tensor(name) for name in TENSORS}
        state = ChainState(**json.loads(metadata["state"]), **tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ChainError(
            f"{checkpoint}: not a readable checkpoint ({error}): delete it to start this chain anew"
        ) from error
    if state.position.shape != (num_weights,):
        raise ChainError(f"{checkpoint}: made for another network: use another --out")
    return state
