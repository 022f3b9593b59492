from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.networks import Network, NetworkError, build

NETWORKS = [
    build("lenet", (1, 28, 28), 10),
    build("lenet", (3, 18, 16), 4, channels=(2, 5, 3), kernel=2, hidden=(), activation="silu"),
    build("lenet", (1, 9, 9), 3, channels=(2,), kernel=3, hidden=(6, 5), activation="tanh"),
    build("mlp", (1, 8, 8), 10, hidden=(32,), activation="tanh"),
    build("mlp", (3, 2, 2), 2, hidden=()),
]
NAMES = [f"{network.name}-{network.num_weights}" for network in NETWORKS]


@pytest.fixture(params=NETWORKS, ids=NAMES)
def network(request: pytest.FixtureRequest) -> Network:
    chosen: Network = request.param
    return chosen


def weights(network: Network, members: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(members, network.num_weights, generator=generator) * 0.1


def images(network: Network, size: int) -> Tensor:
    return torch.randn(size, *network.input_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("members", [1, 3])
def test_members_together_equal_members_one_by_one(
    network: Network, members: int, size: int
) -> None:
    """In double precision: one member alone is summed in another order."""
    positions, batch = weights(network, members).double(), images(network, size).double()
    logits, features = network.forward(network.unflatten(positions), batch)
    assert logits.shape == (size, members, network.num_classes)
    assert features.shape == (size, members, network.layers[-1].fan_in)
    for member in range(members):
        alone = network.forward(network.unflatten(positions[member : member + 1]), batch)
        assert torch.allclose(alone[0][:, 0], logits[:, member], rtol=1e-12, atol=1e-12)
        assert torch.allclose(alone[1][:, 0], features[:, member], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("members", [1, 3])
def test_unrolled_is_the_same_function(network: Network, members: int) -> None:
    parameters = network.unflatten(weights(network, members).double())
    batch = images(network, 4).double()
    pairs = zip(
        network.unrolled(parameters, batch), network.forward(parameters, batch), strict=True
    )
    for actual, expected in pairs:
        assert actual.shape == expected.shape
        assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_lenet_equals_torch_modules() -> None:
    network = NETWORKS[0]
    parameters = network.unflatten(weights(network, 1))
    modules = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 5),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 5),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 10),
    )
    with torch.no_grad():
        for target, value in zip(modules.parameters(), parameters.values(), strict=True):
            target.copy_(value[0])
        expected = modules(images(network, 3))
        logits, features = network.forward(parameters, images(network, 3))
    assert torch.allclose(logits[:, 0], expected, atol=1e-5)
    assert torch.allclose(features[:, 0], modules[:-1](images(network, 3)), atol=1e-5)


def test_image_alone_equals_itself_in_a_batch(network: Network) -> None:
    parameters, batch = network.unflatten(weights(network, 2)), images(network, 5)
    together, _ = network.forward(parameters, batch)
    for index in range(5):
        alone, _ = network.forward(parameters, batch[index : index + 1])
        assert torch.allclose(alone[0], together[index], atol=1e-6)


def test_unflatten_is_a_view(network: Network) -> None:
    flat = weights(network, 2)
    parameters = network.unflatten(flat)
    assert {name: tuple(value.shape[1:]) for name, value in parameters.items()} == network.shapes
    for value in parameters.values():
        assert value.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    flat.zero_()
    assert not any(value.any() for value in parameters.values())


def test_flat_vector_has_every_weight_once_and_in_order(network: Network) -> None:
    flat = torch.arange(float(network.num_weights))[None]
    parts = [value.flatten() for value in network.unflatten(flat).values()]
    assert torch.equal(torch.cat(parts), flat[0])


def test_vector_of_another_length_is_refused(network: Network) -> None:
    with pytest.raises(RuntimeError, match="split"):
        network.unflatten(torch.zeros(1, network.num_weights + 1))


@pytest.mark.parametrize(
    ("index", "count"),
    [(0, 80_202), (3, 64 * 32 + 32 + 32 * 10 + 10), (4, 12 * 2 + 2)],
)
def test_number_of_weights(index: int, count: int) -> None:
    network = NETWORKS[index]
    assert network.num_weights == count
    assert sum(math.prod(shape) for shape in network.shapes.values()) == count


def test_fan_in_is_what_one_unit_adds_up() -> None:
    assert [layer.fan_in for layer in NETWORKS[0].layers] == [25, 400, 512, 128]


def test_there_are_weights_and_biases_and_nothing_else(network: Network) -> None:
    """No BatchNorm or dropout: no running statistics, and the same answer every time."""
    assert {name.rpartition(".")[2] for name in network.shapes} == {"weight", "bias"}
    assert len(network.shapes) == 2 * len(network.layers)
    parameters, batch = network.unflatten(weights(network, 1)), images(network, 3)
    first, again = (network.forward(parameters, batch)[0] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"name": "resnet"}, "unknown network 'resnet': use one of lenet, mlp"),
        ({"activation": "sine"}, "unknown activation 'sine': use one of relu, silu, tanh"),
        ({"kernel": 8}, r"input \(1, 8, 8\) is too small for lenet with kernel 8"),
        ({"kernel": 20}, "too small"),
        ({"channels": (1, 1, 1)}, "too small"),
    ],
)
def test_architecture_that_does_not_fit(arguments: dict[str, object], reason: str) -> None:
    values = {"name": "lenet", "channels": (2,), "kernel": 5, **arguments}
    name = str(values.pop("name"))
    with pytest.raises(NetworkError, match=reason) as caught:
        build(name, (1, 8, 8), 10, **values)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
