"""What the ensemble graph costs, in units of one member in the same runtime: 32 is ideal for 32.

    python -m benchmarks.graph [BUNDLE]

One thread, one run: the graph and a graph of its first member alone take turns, and the least CPU
time of each is kept.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import torch
import typer
from safetensors.numpy import load_file

from benchmarks.machine import describe
from models import bundle as bundles
from models.networks import from_manifest
from training.export import export, session

BATCHES = (1, 8, 32, 128)
ROUNDS = 30


def main(
    bundle: Annotated[Path, typer.Argument()] = Path("models/pretrained/mnist"),
) -> None:
    """Print one row a batch size, in Markdown."""
    loaded = bundles.load(bundle)
    manifest = loaded.manifest
    network = from_manifest(manifest)
    weights = load_file(loaded.path / bundles.WEIGHTS)
    first = np.concatenate([weights[name][0].ravel() for name in network.shapes])
    randomness = np.random.default_rng(0)
    images = randomness.normal(size=(max(BATCHES), *manifest.input.shape)).astype(np.float32)
    ensemble = session(loaded.path / bundles.GRAPH)
    with tempfile.TemporaryDirectory() as folder:
        export(network, first[None], 1, Path(folder), torch.from_numpy(images))
        member = session(Path(folder) / bundles.GRAPH)
        count = manifest.members.count
        print(f"{count} members, one thread, {describe('onnxruntime')}\n")
        print("| batch | one member (ms) | ensemble (ms) | ensemble / member | µs an image |")
        print("|---|---|---|---|---|")
        for batch in BATCHES:
            single, whole = _least_times((member, ensemble), images[:batch])
            print(
                f"| {batch} | {1e3 * single:.3f} | {1e3 * whole:.2f} | {whole / single:.1f} "
                f"| {1e6 * whole / batch:.0f} |"
            )


def _least_times(
    graphs: tuple[onnxruntime.InferenceSession, ...],
    images: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> list[float]:
    """Least CPU seconds of one pass of each graph, the graphs taking turns."""
    least = [float("inf")] * len(graphs)
    for _ in range(ROUNDS):
        for index, graph in enumerate(graphs):
            start = time.process_time()
            graph.run(["logits"], {"images": images})
            least[index] = min(least[index], time.process_time() - start)
    return least


if __name__ == "__main__":
    typer.run(main)
