"""Networks, written once for G members at a time.

Every parameter carries a leading member axis G, so the same function trains one member (G = 1),
runs a group of them, and is exported as the ensemble graph. There is no BatchNorm and no dropout:
both break the likelihood, and with it the posterior (`training.posterior`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from models.manifest import Manifest

Parameters = Mapping[str, Tensor]
Forward = Callable[[Parameters, Tensor], tuple[Tensor, Tensor]]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


MONOTONE = ("relu", "tanh")
"""These commute with max-pooling, and are cheaper after it."""


class NetworkError(ValueError):
    """An architecture that is unknown or does not fit its input."""


@dataclass(frozen=True)
class Layer:
    """One affine map: a weight [out, in, ...] and a bias [out]."""

    name: str
    weight_shape: tuple[int, ...]

    @property
    def fan_in(self) -> int:
        """Inputs that one output unit adds up."""
        return prod(self.weight_shape[1:])

    @property
    def size(self) -> int:
        """Number of scalars, weight and bias together."""
        return prod(self.weight_shape) + self.weight_shape[0]


@dataclass(frozen=True)
class Network:
    """An architecture: its layers in order, and one forward pass for G members.

    `forward(parameters, images)` takes parameters [G, ...] named `<layer>.weight` and
    `<layer>.bias`, and images [B, C, H, W]; it returns logits [B, G, K] and the penultimate
    features [B, G, F].

    `unrolled` is the same function in the operations that onnxruntime is fast at: an activation
    right after a convolution is done in it, and of a matrix that one product of two dimensions
    takes, the weights are packed once, where a batched product packs them in every run.
    """

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    layers: tuple[Layer, ...]
    forward: Forward
    unrolled: Forward

    @property
    def num_weights(self) -> int:
        """D, the number of weights of one member."""
        return sum(layer.size for layer in self.layers)

    @property
    def layer_sizes(self) -> list[int]:
        """D_l, the number of weights of each layer of one member."""
        return [layer.size for layer in self.layers]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter of one member, in the order of the flat vector [D]."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.layers:
            shapes[f"{layer.name}.weight"] = layer.weight_shape
            shapes[f"{layer.name}.bias"] = layer.weight_shape[:1]
        return shapes

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """View weight vectors [G, D] as named parameters [G, ...], without copying."""
        sizes = [prod(shape) for shape in self.shapes.values()]
        parts = flat.split(sizes, dim=1)
        return {
            name: part.unflatten(1, shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


def build(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    channels: tuple[int, ...] = (16, 32),
    kernel: int = 5,
    hidden: tuple[int, ...] = (128,),
    activation: str = "relu",
) -> Network:
    """Build the architecture `name`, one of "lenet" and "mlp".

    `channels` and `kernel` are those of the convolutions, each followed by a 2 x 2 max-pool;
    `hidden` are the widths of the dense layers before the last. An MLP has no convolutions.

    Raises:
        NetworkError: the name or the activation is unknown, or the input is too small.
    """
    if name not in ("lenet", "mlp"):
        raise NetworkError(f"unknown network {name!r}: use one of lenet, mlp")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise NetworkError(f"unknown activation {activation!r}: use one of {known}")
    activate = ACTIVATIONS[activation]
    convolutions = channels if name == "lenet" else ()

    layers: list[Layer] = []
    depth, height, width = input_shape
    for index, out in enumerate(convolutions, start=1):
        layers.append(Layer(f"conv{index}", (out, depth, kernel, kernel)))
        depth, height, width = out, (height - kernel + 1) // 2, (width - kernel + 1) // 2
        if min(height, width) < 1:
            raise NetworkError(f"input {input_shape} is too small for {name} with kernel {kernel}")
    units = depth * height * width
    for index, out in enumerate((*hidden, num_classes), start=1):
        layers.append(Layer(f"dense{index}", (out, units)))
        units = out

    def feature_maps(parameters: Parameters, images: Tensor, pool_first: bool) -> Tensor:
        x = images
        for index in range(1, len(convolutions) + 1):
            x = _convolve(parameters, f"conv{index}", x, 1 if index == 1 else _count(parameters))
            x = activate(F.max_pool2d(x, 2)) if pool_first else F.max_pool2d(activate(x), 2)
        return x

    def forward(parameters: Parameters, images: Tensor) -> tuple[Tensor, Tensor]:
        members = _count(parameters)
        x = feature_maps(parameters, images, pool_first=activation in MONOTONE)
        if convolutions:
            x = x.flatten(1).unflatten(1, (members, -1)).transpose(0, 1)
        else:
            x = x.flatten(1).expand(members, -1, -1)
        for index in range(1, len(hidden) + 1):
            x = activate(_affine(parameters, f"dense{index}", x))
        logits = _affine(parameters, f"dense{len(hidden) + 1}", x)
        return logits.transpose(0, 1), x.transpose(0, 1)

    def unrolled(parameters: Parameters, images: Tensor) -> tuple[Tensor, Tensor]:
        members = _count(parameters)
        x = feature_maps(parameters, images, pool_first=False).flatten(1)
        each = x.chunk(members, dim=1) if convolutions else (x,) * members
        for index in range(1, len(hidden) + 1):
            each = tuple(activate(y) for y in _affine_each(parameters, f"dense{index}", each))
        logits = _affine_each(parameters, f"dense{len(hidden) + 1}", each)
        return _side_by_side(logits), _side_by_side(each)

    return Network(name, input_shape, num_classes, tuple(layers), forward, unrolled)


def from_manifest(manifest: Manifest) -> Network:
    """The architecture of a bundle.

    Raises:
        NetworkError: this version of the code has no such network.
    """
    spec = manifest.network
    return build(
        spec.name,
        manifest.input.shape,
        len(manifest.labels),
        channels=spec.channels,
        kernel=spec.kernel,
        hidden=spec.hidden,
        activation=spec.activation,
    )


def _count(parameters: Parameters) -> int:
    """G, the members whose parameters these are."""
    return next(iter(parameters.values())).shape[0]


def _convolve(parameters: Parameters, layer: str, x: Tensor, groups: int) -> Tensor:
    """Valid convolution of every member: the first layer shares its input, the others do not.

    Of a single member the result is in channels-last order, in which convolutions and max-pools run
    about twice as fast.
    """
    weight = parameters[f"{layer}.weight"]
    kernel = weight.flatten(0, 1)
    if weight.shape[0] == 1:
        kernel = kernel.clone(memory_format=torch.channels_last)
    return F.conv2d(x, kernel, parameters[f"{layer}.bias"].flatten(), groups=groups)


def _affine(parameters: Parameters, layer: str, x: Tensor) -> Tensor:
    """Affine map of every member: x [G, B, in] to [G, B, out]."""
    weight, bias = parameters[f"{layer}.weight"], parameters[f"{layer}.bias"]
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


def _affine_each(
    parameters: Parameters, layer: str, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Affine map of every member: of G inputs [B, in] to G of [B, out]."""
    weight, bias = parameters[f"{layer}.weight"], parameters[f"{layer}.bias"]
    return tuple(F.linear(x, weight[member], bias[member]) for member, x in enumerate(inputs))


def _side_by_side(outputs: tuple[Tensor, ...]) -> Tensor:
    """Of G members' [B, out], [B, G, out]."""
    joined: Tensor = torch.cat(outputs, dim=1).unflatten(1, (len(outputs), -1))
    return joined
