"""PyTorch, on the CPU or a CUDA device. The only module of the service that imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from models.bundle import WEIGHTS, Bundle
from models.networks import Network, NetworkError, from_manifest
from models.outputs import Outputs
from service.errors import EngineError
from service.runtime import Floats

Group = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class TorchRuntime:
    """The network, with the members' weights in groups that are evaluated together.

    Attributes:
        steps: the groups that are evaluated together.
        looked_at: members of the first of them, whose features are told.
    """

    network: Network
    steps: tuple[tuple[Group, ...], ...]
    looked_at: int
    target: torch.device
    device: str
    members: int
    name: str = "torch"

    @property
    def group(self) -> int:
        """Members that are evaluated together."""
        return self.members // len(self.steps)

    @torch.inference_mode()
    def evaluate(self, seen: int, until: int, images: Floats) -> Outputs:
        """Outputs on images [B, C, H, W] of the members from number `seen` up to before `until`."""
        batch = torch.from_numpy(images).to(self.target, non_blocking=True)
        # Not contiguous(): with one channel that copies nothing, and pooling takes its slow road.
        batch = batch.clone(memory_format=torch.channels_last)
        steps = self.steps[seen // self.group : until // self.group]
        logits, features = zip(
            *(self.network.forward(group, batch) for group in chain.from_iterable(steps)),
            strict=True,
        )
        first = features[0][:, : self.looked_at]
        return Outputs(_array(torch.cat(logits, dim=1)), _array(first))


def open_runtime(bundle: Bundle, device: str, threads: int) -> TorchRuntime:
    """Load the bundle's weights onto `device`: "cpu", "cuda" or "auto".

    Raises:
        EngineError: there is no such device, or the weights do not fit the network.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError("this PyTorch sees no CUDA device")
    cuda = device != "cpu" and torch.cuda.is_available()
    target = torch.device("cuda" if cuda else "cpu")
    torch.set_num_threads(threads)
    # Full single precision, so that every engine gives the answers that the bundle was tested for.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    network, weights = _load(bundle)
    spec = bundle.manifest.members
    groups = tuple(
        {
            name: tensor[start : start + spec.group].to(target).contiguous()
            for name, tensor in weights.items()
        }
        for start in range(0, spec.count, spec.group)
    )
    shown = torch.cuda.get_device_name(target) if cuda else "cpu"
    steps = (groups,) if cuda else tuple((group,) for group in groups)
    return TorchRuntime(network, steps, spec.group, target, shown, spec.count)


def _array(values: torch.Tensor) -> Floats:
    return np.asarray(values.float().cpu().numpy(), dtype=np.float32)


def _load(bundle: Bundle) -> tuple[Network, dict[str, torch.Tensor]]:
    manifest, file = bundle.manifest, bundle.path / WEIGHTS
    try:
        network = from_manifest(manifest)
        weights = load_file(file)
    except (NetworkError, SafetensorError, OSError) as error:
        raise EngineError(f"{file}: {error}") from error
    expected = {name: (manifest.members.count, *shape) for name, shape in network.shapes.items()}
    for name, shape in expected.items():
        found = tuple(weights[name].shape) if name in weights else None
        if found != shape:
            raise EngineError(f"{file}: {name} is {found}, the network needs {shape}")
    return network, {name: weights[name] for name in expected}
