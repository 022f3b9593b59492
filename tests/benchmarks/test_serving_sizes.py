from __future__ import annotations

from pathlib import Path

from benchmarks.serving.sizes import compared, size_of

BUNDLE = Path("models/pretrained/mnist/1")


def test_the_servers_of_a_bundle_are_told_apart_by_its_size() -> None:
    size = size_of(BUNDLE, Path("ours"), Path("theirs"))
    assert size.members == 32
    servers = (size.default, size.everyone, size.peer)
    assert [each.name for each in servers] == [
        "langevin gate, 32",
        "langevin gate, all members, 32",
        "mosec, 32",
    ]
    assert [each.path for each in servers] == ["/predict", "/predict?members=all", "/predict"]
    assert size.peer.environment["PEER_BUNDLE"] == str(BUNDLE.resolve())


def test_every_server_is_at_its_best_and_ratios_are_of_turns() -> None:
    size = size_of(BUNDLE, Path("ours"), Path("theirs"))
    rates = {
        size.default.name: {"64": [100.0, 200.0, 300.0], "128": [1.0, 1.0, 1.0]},
        size.everyone.name: {"64": [1.0, 1.0, 1.0], "128": [20.0, 20.0, 20.0]},
        size.peer.name: {"64": [50.0, 100.0, 100.0], "128": [2.0, 2.0, 2.0]},
    }
    assert compared([size], {32: 5.104}, rates).splitlines()[2:] == [
        "| 32 | 5.10 | 200 (150–250) | 20 (20–20) | 100 (75–100) | 2.00 (2.00–2.50) |"
    ]
