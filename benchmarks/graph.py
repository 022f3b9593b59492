"""What the ensemble graph costs, in units of one member in the same runtime: 32 is ideal for 32.

    python -m benchmarks.graph [BUNDLE]

One thread, one run: the graph and graphs of its first members alone take turns, and the CPU time of
the fastest pass of each is kept. The peak is what numpy's product of two large matrices reaches in
the same turns. The second table is of groups, as the service evaluates them: what a member costs
that shares its graph with others.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a second thread's waiting would count as CPU time

import numpy as np
import onnxruntime
import torch
import typer
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe
from benchmarks.timing import least_times
from models import bundle as bundles
from models.networks import from_manifest
from training.export import export, session

Floats = NDArray[np.float32]

BATCHES = (1, 8, 32, 128)
GROUPS = (1, 2, 4, 8, 16, 32)
ROUNDS = 30
SIDE = 1024  # of the matrices that reach the peak


def main(
    bundle: Annotated[Path, typer.Argument()] = Path("models/pretrained/mnist"),
) -> None:
    """Print one row a batch size, in Markdown."""
    loaded = bundles.load(bundle)
    manifest = loaded.manifest
    network = from_manifest(manifest)
    weights = load_file(loaded.path / bundles.WEIGHTS)
    count = manifest.members.count
    stacked = [weights[name].reshape(count, -1) for name in network.shapes]
    positions = np.concatenate(stacked, axis=1)
    randomness = np.random.default_rng(0)
    images = randomness.normal(size=(max(BATCHES), *manifest.input.shape)).astype(np.float32)
    ensemble = session(loaded.path / bundles.GRAPH)
    sizes = [size for size in GROUPS if size <= count]
    with tempfile.TemporaryDirectory() as folder:
        groups = []
        for size in sizes:
            target = Path(folder) / str(size)
            target.mkdir()
            export(network, positions[:size], size, target, torch.from_numpy(images))
            groups.append(session(target / bundles.GRAPH))
        least = [_seconds((ensemble, *groups), images[:batch]) for batch in BATCHES]
    with FlopCounterMode(display=False) as counter:
        network.forward(network.unflatten(torch.from_numpy(positions)), torch.from_numpy(images))
    operations = counter.get_total_flops() / len(images)
    print(f"{count} members, one thread, {describe('onnxruntime')}\n")
    columns = "one member (ms) | ensemble (ms) | ensemble / member | µs an image | of peak (%)"
    print(f"| batch | {columns} |")
    print("|---|---|---|---|---|---|")
    for batch, (peak, whole, single, *_) in zip(BATCHES, least, strict=True):
        share = batch * operations / whole * peak / (2 * SIDE**3)
        print(
            f"| {batch} | {1e3 * single:.3f} | {1e3 * whole:.2f} | {whole / single:.1f} "
            f"| {1e6 * whole / batch:.0f} | {100 * share:.0f} |"
        )
    print("\nµs a member and image, by members in a group:\n")
    print(f"| batch | {' | '.join(map(str, sizes))} |")
    print("|---" * (len(sizes) + 1) + "|")
    for batch, (_, _, *seconds) in zip(BATCHES, least, strict=True):
        costs = [
            f"{1e6 * each / (batch * size):.1f}" for each, size in zip(seconds, sizes, strict=True)
        ]
        print(f"| {batch} | {' | '.join(costs)} |")


def _seconds(graphs: Sequence[onnxruntime.InferenceSession], images: Floats) -> list[float]:
    """CPU seconds of the fastest product of two large matrices and pass of each graph, in turns."""
    matrix = np.ones((SIDE, SIDE), dtype=np.float32)
    passes: dict[int, Callable[[], object]] = {-1: partial(np.matmul, matrix, matrix)}
    for number, graph in enumerate(graphs):
        passes[number] = partial(graph.run, ["logits"], {"images": images})
    least = least_times(passes, len(images), ROUNDS)
    return [len(images) * each.cpu for each in least.values()]


if __name__ == "__main__":
    typer.run(main)
