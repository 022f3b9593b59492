"""Images of no class that a recipe knows."""

from __future__ import annotations

import numpy as np

from models.preprocessing import LUMA
from training import data
from training.data import Dataset, from_arrays
from training.run import Run
from training.views import FRAME, frame

NOISE_IMAGES = 2_000
OBJECTS = "cifar10"


def foreign_sets(run: Run) -> dict[str, Dataset]:
    """Unfamiliar sets by name.

    NAME         the recipe's own (`data.ood`)
    NAME-20      the same, framed as MNIST is (`training.views.frame`)
    cifar10-grey the luma of CIFAR-10, its middle 28 × 28; not for a recipe of CIFAR-10
    noise        uniform, of the network's input size
    """
    sets: dict[str, Dataset] = {}
    for name in run.recipe.data.ood:
        part = run.foreign(name)
        sets[name] = part
        sets[f"{name}-20"] = from_arrays(frame(part.images), part.labels, part.classes, name=name)
    if run.recipe.data.dataset != OBJECTS:
        colours = data.load(OBJECTS, "test", run.data_dir)
        middle = slice(2, 2 + FRAME)
        luma = np.rint(colours.images[:, middle, middle] @ LUMA).astype(np.uint8)[..., None]
        sets[f"{OBJECTS}-grey"] = from_arrays(luma, colours.labels, colours.classes, name=OBJECTS)
    channels, height, width = run.problem.input.shape
    size = (NOISE_IMAGES, height, width, channels)
    noise = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    zeros = np.zeros(NOISE_IMAGES, dtype=np.int64)
    sets["noise"] = from_arrays(noise, zeros, ("noise",), name="noise")
    return sets
