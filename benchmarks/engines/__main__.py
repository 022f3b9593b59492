"""Which engine, precision and number of threads a bundle is best served with, on a CPU.

    python -m benchmarks.engines [BUNDLE] [--data-dir DATA] [--out FILE.md]

One run: variants take turns, and the least time of each is kept. A variant is worth adopting if it
decides on test images as the served one does and takes at most 95 % of its time at every batch
size. It needs the data sets that the bundle was trained and tested on.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.engines import scaling, tables
from benchmarks.engines.graphs import Floats
from benchmarks.engines.parity import answers, compare
from benchmarks.engines.timing import least_times
from benchmarks.engines.variants import SERVED, Source, open_variants
from benchmarks.machine import describe
from models import bundle as bundles
from models.bundle import Bundle
from models.preprocessing import prepare
from service.runtime import available_cpus
from training.data import Part, data_directory, load

ROUNDS = {1: 60, 8: 30, 32: 15, 128: 5}
"""By images in a batch."""
THREAD_BATCHES = (1, 8, 32)
PARITY_BATCH = 8
CALIBRATION = 256
TESTED = 2000
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
    """The first images of the data that had a role in the bundle's training."""
    data = next(each for each in bundle.manifest.data if each.role == role)
    dataset = load(data.name, role, directory)
    images, _ = prepare(dataset.images[:count], bundle.manifest.input)
    return images


def _engines(source: Source, images: Floats) -> str:
    bundle = source.bundle
    variants, failures = open_variants(source, [images[:batch] for batch in ROUNDS])
    times = {
        batch: least_times(
            {name: partial(run, images[:batch]) for name, run in variants.items()}, rounds
        )
        for batch, rounds in ROUNDS.items()
    }
    found = {name: answers(run, images, bundle, PARITY_BATCH) for name, run in variants.items()}
    policy = bundle.manifest.policies[POLICY]
    parity = {
        name: compare(found[SERVED], each, bundle.calibration, policy)
        for name, each in found.items()
        if name != SERVED
    }
    return (
        f"All members, one thread:\n\n{tables.speed(times, failures)}\n"
        f"{len(images):,} test images that are answered otherwise than by the served variant:\n\n"
        f"{tables.parities(parity, times, SERVED)}"
    )


def _threads(bundle: Bundle, images: Floats) -> str:
    counts = scaling.thread_counts(available_cpus())
    times = {
        batch: scaling.of_threads(bundle, images[:batch], counts, ROUNDS[batch])
        for batch in THREAD_BATCHES
    }
    return f"onnxruntime's groups, µs an image, wall / CPU:\n\n{tables.threads(times)}"


def _growth(source: Source, images: Floats) -> str:
    batch = scaling.BATCH
    members = scaling.of_members(source.bundle, images[:batch], source.folder, ROUNDS[batch])
    sizes = scaling.of_pixels(source.folder, ROUNDS[batch])
    return (
        f"More members, one thread, batch {batch}:\n\n{tables.members(members, batch)}\n"
        f"Larger images, {scaling.GROUP} members with random weights:\n\n"
        f"{tables.pixels(sizes, batch, scaling.GROUP)}"
    )


if __name__ == "__main__":
    typer.run(main)
