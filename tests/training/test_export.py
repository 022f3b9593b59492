from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from models.bundle import BLOCK_GRAPH, GRAPH, GROUP_GRAPH, WEIGHTS
from models.networks import Network, build
from training.export import ExportError, export, member_outputs, session

MEMBERS, GROUP, BLOCK = 8, 2, 6
NETWORKS = {
    "lenet": build("lenet", (1, 12, 10), 3, channels=(2, 3), kernel=3, hidden=(7,)),
    "mlp": build("mlp", (3, 4, 5), 4, hidden=(6, 5), activation="tanh"),
}


@dataclass(frozen=True)
class Exported:
    network: Network
    positions: NDArray[np.float32]
    images: torch.Tensor
    folder: Path
    difference: float

    def expected(self, count: int) -> list[NDArray[np.float32]]:
        """Logits and features of each member by itself, in double precision, [count, M, ...]."""
        members = [
            self.network.forward(self.network.unflatten(torch.from_numpy(one[None])), images)
            for images in [self.images[:count].double()]
            for one in self.positions.astype(np.float64)
        ]
        return [torch.cat(part, dim=1).numpy() for part in zip(*members, strict=True)]


def images_for(network: Network) -> torch.Tensor:
    return torch.randn(32, *network.input_shape, generator=torch.Generator().manual_seed(1))


def positions_for(network: Network) -> NDArray[np.float32]:
    randomness = np.random.default_rng(0)
    return randomness.normal(0, 0.3, (MEMBERS, network.num_weights)).astype(np.float32)


@pytest.fixture(scope="module", params=list(NETWORKS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    network = NETWORKS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    positions, images = positions_for(network), images_for(network)
    difference = export(network, positions, GROUP, folder, images)
    return Exported(network, positions, images, folder, difference)


def run(engine: onnxruntime.InferenceSession, images: torch.Tensor) -> list[NDArray[np.float32]]:
    logits, features = engine.run(["logits", "features"], {"images": images.numpy()})
    return [logits, features]


def with_weights(folder: Path, graph: str, first: int, count: int) -> onnxruntime.InferenceSession:
    """The graph as it stands, or with the weights of members from another than the first on."""
    options = onnxruntime.SessionOptions()
    if first:
        weights = load_file(folder / WEIGHTS)
        parts = [np.ascontiguousarray(each[first : first + count]) for each in weights.values()]
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(part) for part in parts]
        options.add_external_initializers([name.replace(".", "_") for name in weights], values)
    return onnxruntime.InferenceSession(folder / graph, options)


@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_graph_answers_as_each_member_does_by_itself(exported: Exported, count: int) -> None:
    classes, features = exported.network.num_classes, exported.network.layers[-1].weight_shape[1]
    for graph, members in ((GRAPH, MEMBERS), (GROUP_GRAPH, GROUP)):
        answers = run(session(exported.folder / graph), exported.images[:count])
        assert answers[0].shape == (count, members, classes)
        assert answers[1].shape == (count, members, features)
        for actual, expected in zip(answers, exported.expected(count), strict=True):
            assert actual == pytest.approx(expected[:, :members], abs=2e-6)


@pytest.mark.parametrize("first", [0, GROUP])
def test_graph_of_a_block_tells_the_logits_of_three_groups(exported: Exported, first: int) -> None:
    """Of the first as it stands; of later ones in a session that is given their weights."""
    block = with_weights(exported.folder, BLOCK_GRAPH, first, BLOCK)
    assert [output.name for output in block.get_outputs()] == ["logits"]
    for count in (1, 3, 32):
        (actual,) = block.run(["logits"], {"images": exported.images[:count].numpy()})
        expected, _ = exported.expected(count)
        assert actual == pytest.approx(expected[:, first : first + BLOCK], abs=2e-6)


def test_too_few_members_have_no_block(tmp_path: Path) -> None:
    network = NETWORKS["mlp"]
    (tmp_path / BLOCK_GRAPH).write_bytes(b"of an older export")
    export(network, positions_for(network)[:BLOCK], GROUP, tmp_path, images_for(network))
    assert not (tmp_path / BLOCK_GRAPH).exists()


@pytest.mark.parametrize("first", range(0, MEMBERS, GROUP))
def test_graph_of_one_group_is_any_group_of_the_ensemble(exported: Exported, first: int) -> None:
    """The first as it stands; another in a session that is given its weights."""
    one = with_weights(exported.folder, GROUP_GRAPH, first, GROUP)
    everyone = run(session(exported.folder / GRAPH), exported.images)
    for actual, expected in zip(run(one, exported.images), everyone, strict=True):
        assert actual == pytest.approx(expected[:, first : first + GROUP], abs=2e-6)
        assert np.abs(np.diff(expected[:, ::GROUP], axis=1)).max() > 0.1


@pytest.mark.parametrize("group", [1, 2, 4])
def test_weights_of_two_classes_and_few_members_are_not_folded_into_the_graph(
    tmp_path: Path, group: int
) -> None:
    network = build("mlp", (1, 2, 2), 2, hidden=(2,))
    export(network, positions_for(network)[:4], group, tmp_path, images_for(network))
    for name in (GRAPH, GROUP_GRAPH):
        graph = onnx.load(tmp_path / name, load_external_data=False).graph
        external = {value.name for value in graph.initializer if value.external_data}
        assert external == {name.replace(".", "_") for name in network.shapes}


def test_weights_of_equal_values_are_not_taken_for_each_other(tmp_path: Path) -> None:
    network = build("mlp", (1, 2, 2), 4, hidden=(4, 4))
    positions = np.zeros((4, network.num_weights), np.float32)
    export(network, positions, 2, tmp_path, images_for(network))
    graph = onnx.load(tmp_path / GRAPH, load_external_data=False).graph
    external = {value.name for value in graph.initializer if value.external_data}
    assert external == {name.replace(".", "_") for name in network.shapes}


def test_difference_is_reported(exported: Exported) -> None:
    expected = exported.expected(32)
    actual = max(
        float(np.abs(answer - each[:, : answer.shape[1]]).max())
        for graph in (GRAPH, GROUP_GRAPH)
        for answer, each in zip(
            run(session(exported.folder / graph), exported.images), expected, strict=True
        )
    )
    assert 0 < exported.difference < 2e-6
    assert actual == pytest.approx(exported.difference, abs=1e-6)


@pytest.mark.parametrize("group", [1, GROUP, MEMBERS])
def test_outputs_are_those_of_one_batch_with_features_of_the_first_members(
    exported: Exported, group: int
) -> None:
    engine, images = session(exported.folder / GRAPH), exported.images.numpy()
    outputs, (logits, features) = member_outputs(engine, group, images, 5), exported.expected(32)
    assert outputs.logits == pytest.approx(logits, abs=2e-6)
    assert outputs.features.shape[1] == group
    assert outputs.features == pytest.approx(features[:, :group], abs=2e-6)


def test_features_of_all_members_are_not_kept() -> None:
    """Those of 32 members and 60,000 images would take a gigabyte."""

    class Engine:
        given: ClassVar[list[weakref.ref[NDArray[np.float32]]]] = []

        def run(self, names: list[str], feed: dict[str, NDArray[np.float32]]) -> tuple[Any, ...]:
            assert sum(each() is not None for each in self.given) <= 1
            features = np.ones((len(feed["images"]), 8, 3), np.float32)
            self.given.append(weakref.ref(features))
            return np.ones((len(features), 8, 2), np.float32), features

    outputs = member_outputs(Engine(), 4, np.zeros((9, 1, 2, 2), np.float32), batch_size=2)
    assert len(Engine.given) == 5
    assert outputs.features.shape == (9, 4, 3)


@pytest.mark.parametrize(("name", "members"), [(GRAPH, MEMBERS), (GROUP_GRAPH, GROUP)])
def test_weights_file_is_the_only_copy(exported: Exported, name: str, members: int) -> None:
    graph = onnx.load(exported.folder / name, load_external_data=False)
    external = [value for value in graph.graph.initializer if value.external_data]
    inside = [value for value in graph.graph.initializer if not value.external_data]
    assert len(external) == len(exported.network.shapes)
    for value in external:
        assert {entry.key: entry.value for entry in value.external_data}["location"] == WEIGHTS
        assert value.dims[0] == members
        assert not value.raw_data
        assert not value.float_data
    assert all(np.prod(value.dims) <= 8 for value in inside)
    constants = [node for node in graph.graph.node if node.op_type == "Constant"]
    assert all(attribute.t.ByteSize() < 100 for node in constants for attribute in node.attribute)


def test_weights_file_holds_the_positions(exported: Exported) -> None:
    stacked = load_file(exported.folder / WEIGHTS)
    flat = [stacked[name].reshape(MEMBERS, -1) for name in exported.network.shapes]
    assert np.array_equal(np.concatenate(flat, axis=1), exported.positions)


def test_other_weights_give_other_answers(exported: Exported, tmp_path: Path) -> None:
    """The graph file alone holds nothing: beside another weights file it is another ensemble."""
    for name in (GRAPH, GROUP_GRAPH):
        (tmp_path / name).write_bytes((exported.folder / name).read_bytes())
    content = bytearray((exported.folder / WEIGHTS).read_bytes())
    size = 4 * exported.positions.size
    content[-size:] = np.zeros(exported.positions.size, np.float32).tobytes()
    (tmp_path / WEIGHTS).write_bytes(content)
    for name in (GRAPH, GROUP_GRAPH):
        outputs = member_outputs(session(tmp_path / name), GROUP, exported.images.numpy())
        assert not outputs.logits.any()


@pytest.mark.parametrize("name", [GRAPH, GROUP_GRAPH])
def test_graph_without_its_weights_is_refused(
    exported: Exported, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes((exported.folder / name).read_bytes())
    with pytest.raises(Exception, match=WEIGHTS):
        session(tmp_path / name)


def test_two_exports_have_the_same_bytes_and_no_paths(exported: Exported, tmp_path: Path) -> None:
    export(exported.network, exported.positions, GROUP, tmp_path, exported.images)
    for name in (GRAPH, GROUP_GRAPH, WEIGHTS):
        content = (tmp_path / name).read_bytes()
        assert content == (exported.folder / name).read_bytes()
        for trace in (b".py", b"/home", b"/tmp", b"/usr", str(Path.cwd()).encode()):
            assert trace not in content


@pytest.mark.parametrize("name", [GRAPH, GROUP_GRAPH])
def test_graph_is_checked_and_takes_any_batch(exported: Exported, name: str) -> None:
    engine = session(exported.folder / name)
    (images,) = engine.get_inputs()
    assert images.name == "images"
    assert images.shape[1:] == list(exported.network.input_shape)
    assert isinstance(images.shape[0], str)
    assert [output.name for output in engine.get_outputs()] == ["logits", "features"]
    assert engine.get_providers() == ["CPUExecutionProvider"]
    assert onnxruntime.get_available_providers()


@pytest.mark.parametrize("group", [1, 3, MEMBERS])
def test_group_does_not_change_the_answers(tmp_path: Path, group: int) -> None:
    network = NETWORKS["mlp"]
    positions, images = positions_for(network), images_for(network)[:2]
    assert export(network, positions, group, tmp_path, images) < 2e-6


def test_graph_that_answers_otherwise_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight of one member is changed between saving and comparing."""
    network = NETWORKS["mlp"]
    save = onnx.save

    def tamper(graph: onnx.ModelProto, file: Path) -> None:
        save(graph, file)
        with (file.parent / WEIGHTS).open("r+b") as weights:
            weights.seek(-4, 2)
            weights.write(np.float32(9).tobytes())

    monkeypatch.setattr(onnx, "save", tamper)
    with pytest.raises(
        ExportError, match=r"^ensemble.onnx: .* differ by \d\.\d\de[-+]\d\d, "
    ) as caught:
        export(network, positions_for(network), GROUP, tmp_path, images_for(network))
    assert "\n" not in str(caught.value)


def test_answers_that_are_not_numbers_are_an_error(tmp_path: Path) -> None:
    network = NETWORKS["mlp"]
    positions = positions_for(network)
    positions[1, 0] = np.nan
    with pytest.raises(ExportError, match="nan"):
        export(network, positions, GROUP, tmp_path, images_for(network))


def test_refused_graph_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = NETWORKS["mlp"]
    monkeypatch.setattr("training.export.TOLERANCE", -1.0)
    with pytest.raises(ExportError):
        export(network, positions_for(network), GROUP, tmp_path, images_for(network))
    assert not (tmp_path / GRAPH).exists()
    assert not (tmp_path / GROUP_GRAPH).exists()
