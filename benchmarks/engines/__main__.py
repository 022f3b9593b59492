"""Which engine, precision and number of threads a bundle is best served with, on a CPU.

    python -m benchmarks.engines [BUNDLE] [--data-dir DATA] [--out FILE.md]

One run: variants take turns, and the least time of each is kept. A variant is worth adopting if it
decides on test images as the served one does, whatever else is in the batch, and takes at most 95 %
of its time on every kind of batch; noise is one, since some engines take longer for it. It needs
the data sets that the bundle was trained and tested on.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.engines import scaling, tables
from benchmarks.engines.graphs import Floats
from benchmarks.engines.parity import answers, compare
from benchmarks.engines.variants import SERVED, Source, open_variants
from benchmarks.machine import describe
from benchmarks.timing import least_times
from models import bundle as bundles
from models.bundle import Bundle
from models.preprocessing import prepare
from service.runtime import available_cpus
from training.data import Part, data_directory, load

ROUNDS = {1: 60, 8: 30, 32: 20, 128: 5}
"""By images in a batch."""
NOISE = 32
THREAD_BATCHES, THREAD_ROUNDS = (1, 8, 32), 100
PARITY_BATCH = 8
CALIBRATION, TESTED, ALONE = 256, 2000, 64
POLICY = "default"


def main(
    bundle: Annotated[Path, typer.Argument()] = Path("models/pretrained/mnist"),
    data_dir: Annotated[Path | None, typer.Option(help="Where the data sets are.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the report.")] = None,
) -> None:
    """Print what was measured, in Markdown."""
    torch.set_num_threads(1)
    loaded, directory = bundles.load(bundle), data_directory(data_dir)
    calibration = _prepared(loaded, "train", CALIBRATION, directory)
    images = _prepared(loaded, "test", TESTED, directory)
    with tempfile.TemporaryDirectory() as folder:
        source = Source(loaded, calibration, Path(folder))
        report = "\n".join(
            [
                f"{loaded.manifest.members.count} members, {describe('onnxruntime', 'torch')}\n",
                _engines(source, images),
                _threads(loaded, images),
                _growth(source, images),
            ]
        )
    print(report)
    if out:
        out.write_text(report)


def _prepared(bundle: Bundle, role: Part, count: int, directory: Path) -> Floats:
    """The first images of the data that had a role in the bundle's training.

    As in the service, images that were prepared one by one make a batch: their order in memory is
    part of what engines are timed on.
    """
    data = next(each for each in bundle.manifest.data if each.role == role)
    dataset = load(data.name, role, directory)
    images, _ = prepare(dataset.images[:count], bundle.manifest.input)
    return _one_by_one(images)


def _one_by_one(images: Floats) -> Floats:
    return np.concatenate(np.split(images, len(images)))


def _engines(source: Source, images: Floats) -> str:
    bundle, policy = source.bundle, source.bundle.manifest.policies[POLICY]
    batches = {str(size): images[:size] for size in ROUNDS}
    batches[f"{NOISE} of noise"] = _noise(bundle)
    variants, failures = open_variants(source, list(batches.values()))
    times = {
        kind: least_times(
            {name: partial(run, batch) for name, run in variants.items()},
            len(batch),
            ROUNDS[len(batch)],
        )
        for kind, batch in batches.items()
    }
    found = {name: answers(run, images, bundle, PARITY_BATCH) for name, run in variants.items()}
    parity = {}
    for name, run in variants.items():
        alone = answers(run, images[:ALONE], bundle, 1)
        parity[name] = compare(found[SERVED], found[name], alone, bundle.calibration, policy)
    return (
        f"All members, one thread:\n\n{tables.speed(times, failures)}\n"
        f"{len(images):,} test images answered otherwise than by the first variant:\n\n"
        f"{tables.parities(parity, times, SERVED)}"
    )


def _noise(bundle: Bundle) -> Floats:
    channels, height, width = bundle.manifest.input.shape
    size = (NOISE, height, width, channels)
    noise, _ = prepare(
        np.random.default_rng(0).integers(0, 256, size, np.uint8), bundle.manifest.input
    )
    return _one_by_one(noise)


def _threads(bundle: Bundle, images: Floats) -> str:
    counts = scaling.thread_counts(available_cpus())
    times = {
        batch: scaling.of_threads(bundle, images[:batch], counts, THREAD_ROUNDS)
        for batch in THREAD_BATCHES
    }
    return f"onnxruntime's groups, µs an image, wall / CPU:\n\n{tables.threads(times)}"


def _growth(source: Source, images: Floats) -> str:
    batch = scaling.BATCH
    members = scaling.of_members(source.bundle, images[:batch], source.folder, ROUNDS[batch])
    sizes = scaling.of_pixels(source.folder, ROUNDS[batch])
    return (
        f"More members, one thread, batch {batch}:\n\n{tables.members(members)}\n"
        f"Larger images, {scaling.GROUP} members with random weights:\n\n"
        f"{tables.pixels(sizes)}"
    )


if __name__ == "__main__":
    typer.run(main)
