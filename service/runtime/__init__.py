"""Engines that evaluate an ensemble on images: one protocol, and how one is chosen."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import math
import os
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.outputs import Outputs
from service.errors import EngineError
from service.settings import Settings

__all__ = ["Runtime", "available_cpus", "choose", "everything"]

Floats = NDArray[np.float32]

log = logging.getLogger("service.runtime")


class Runtime(Protocol):
    """An engine with a bundle's weights in it.

    Attributes:
        name: "onnx" or "torch".
        device: where it computes, "cpu" or the GPU's name.
        members: M.
        group: members that are evaluated together, a divisor of M; the bundle's groups on a CPU,
            all on a GPU, which has room for them.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def device(self) -> str: ...  # noqa: D102

    @property
    def members(self) -> int: ...  # noqa: D102

    @property
    def group(self) -> int: ...  # noqa: D102

    def evaluate(self, seen: int, until: int, images: Floats) -> Outputs:
        """Outputs on images [B, C, H, W] of the members from number `seen` up to before `until`.

        Both are multiples of `group`. Features are those of the bundle's first group, if it is
        among them, and mean nothing otherwise. Called by one thread at a time.
        """
        ...


def everything(runtime: Runtime, images: Floats) -> Outputs:
    """Outputs of all members on images [B, C, H, W]."""
    return runtime.evaluate(0, runtime.members, images)


def choose(bundle: Bundle, settings: Settings) -> Runtime:
    """Open the bundle with the engine and on the device that the settings ask for.

    `auto` takes onnxruntime on the GPU if it can use one, else torch on the GPU if torch is there
    and can, else onnxruntime on the CPU.

    Raises:
        EngineError: what was asked for is not there.
    """
    threads = settings.threads or max(1, available_cpus() // settings.workers)
    if settings.runtime == "torch":
        return _torch(bundle, settings.device, threads)
    from service.runtime import onnx

    if settings.device == "cpu":
        return onnx.open_runtime(bundle, "cpu", threads)
    try:
        return onnx.open_runtime(bundle, "cuda", threads)
    except EngineError as error:
        if settings.runtime == "onnx" and settings.device == "cuda":
            raise
        reason = str(error)
    if settings.runtime == "auto" and _torch_may_have_gpu():
        try:
            return _torch(bundle, "cuda", threads)
        except EngineError as error:
            reason = f"{reason}; {error}"
    if settings.device == "cuda":
        raise EngineError(f"device cuda: {reason}")
    if _nvidia_present():
        log.warning("there is an NVIDIA GPU, but it is not used: %s", reason)
    return onnx.open_runtime(bundle, "cpu", threads)


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, and the quota of its container."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cpus = min(cpus, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass
    return max(1, cpus)


def _torch(bundle: Bundle, device: str, threads: int) -> Runtime:
    if importlib.util.find_spec("torch") is None:
        raise EngineError("runtime torch: PyTorch is not installed (langevin-gate[torch])")
    from service.runtime import torch

    return torch.open_runtime(bundle, device, threads)


def _torch_may_have_gpu() -> bool:
    """Whether importing torch, which is slow and large, may lead to a GPU."""
    if not _nvidia_present() or importlib.util.find_spec("torch") is None:
        return False
    return "+cpu" not in importlib.metadata.version("torch")


def _nvidia_present() -> bool:
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg"))
