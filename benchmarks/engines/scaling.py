"""How time grows: with threads, with members, with the size of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from benchmarks.engines.graphs import Floats
from benchmarks.engines.variants import of_runtime
from benchmarks.timing import Least, least_times
from models.bundle import GROUP_GRAPH, WEIGHTS, Bundle
from models.networks import Network, build, from_manifest
from models.outputs import Ensemble
from service.runtime import onnx
from training.export import export, session

BATCH = 32
MEMBERS = (1, 2, 4, 8, 16, 32)
PIXELS = (28, 56, 84)
GROUP = 4
SEED = 0


def thread_counts(cpus: int) -> list[int]:
    """1, 2, 4 … up to the CPUs there are, and these."""
    return sorted({1 << doubling for doubling in range(cpus.bit_length())} | {cpus})


def of_threads(
    bundle: Bundle, images: Floats, counts: Sequence[int], rounds: int
) -> dict[int, dict[int, Least]]:
    """Least times of one batch by members, the first group and all, and by threads."""
    runtimes = {count: onnx.open_runtime(bundle, "cpu", count) for count in counts}
    members = (bundle.manifest.members.group, bundle.manifest.members.count)
    passes = {
        (first, count): partial(_of_first(runtime, first), images)
        for first in members
        for count, runtime in runtimes.items()
    }
    times = least_times(passes, len(images), rounds)
    return {first: {count: times[first, count] for count in counts} for first in members}


def of_members(bundle: Bundle, images: Floats, folder: Path, rounds: int) -> dict[int, Least]:
    """Least times of one batch, by how many of the bundle's first members there are."""
    spec, network = bundle.manifest.members, from_manifest(bundle.manifest)
    weights = load_file(bundle.path / WEIGHTS)
    stacked = [weights[name].reshape(spec.count, -1) for name in network.shapes]
    positions = np.concatenate(stacked, axis=1)
    runtime = onnx.open_runtime(bundle, "cpu", 1)
    ensembles: dict[int, Ensemble] = {}
    for size in (size for size in MEMBERS if size <= spec.count):
        if size < spec.group:
            target = folder / f"{size}-members"
            ensembles[size] = _exported(network, positions[:size], images, target)
        elif size % spec.group == 0:
            ensembles[size] = _of_first(runtime, size)
    passes = {size: partial(run, images) for size, run in ensembles.items()}
    return least_times(passes, len(images), rounds)


def of_pixels(folder: Path, rounds: int) -> dict[tuple[int, int], Least]:
    """Least times of a batch for a group of LeNets with random weights, by pixels and D."""
    randomness, passes = torch.Generator().manual_seed(SEED), {}
    for pixels in PIXELS:
        network = build("lenet", (1, pixels, pixels), 10)
        positions = torch.randn((GROUP, network.num_weights), generator=randomness)
        for values in network.unflatten(positions).values():
            values.div_(sqrt(values[0, 0].numel()))
        images = torch.randn((BATCH, *network.input_shape), generator=randomness).numpy()
        ensemble = _exported(network, positions.numpy(), images, folder / f"{pixels}-pixels")
        passes[pixels, network.num_weights] = partial(ensemble, images)
    return least_times(passes, BATCH, rounds)


def _of_first(runtime: onnx.OnnxRuntime, members: int) -> Ensemble:
    sessions = runtime.sessions[: members // runtime.group]
    return of_runtime(replace(runtime, sessions=sessions, members=members))


def _exported(network: Network, positions: Floats, images: Floats, folder: Path) -> Ensemble:
    """Members with these weight vectors [G, D], as one group."""
    folder.mkdir()
    group = len(positions)
    export(network, positions, group, folder, torch.from_numpy(images))
    sessions = (session(folder / GROUP_GRAPH),)
    return of_runtime(onnx.OnnxRuntime(sessions, {}, group, "cpu", group, group))
