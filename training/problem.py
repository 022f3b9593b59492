"""A recipe made concrete: its data split and prepared, its network built, its posterior defined."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.manifest import DataSource, Role
from models.networks import Network, build
from models.preprocessing import InputSpec, prepare
from training import data
from training.data import Dataset
from training.posterior import Posterior
from training.recipe import Recipe


@dataclass(frozen=True)
class Problem:
    """What a recipe says, with data.

    Attributes:
        recipe: the recipe.
        labels: class names, K of them.
        input: the network's input, standardised with the mean and deviation of the training part.
        network: the architecture.
        posterior: the target of the sampler; N is the size of the training part.
        train: what the likelihood sees.
        validation: for observables while sampling, and for choices.
        calibration: for conformal p-values, seen by nothing else.
        test: for the figures that are reported.
    """

    recipe: Recipe
    labels: tuple[str, ...]
    input: InputSpec
    network: Network
    posterior: Posterior
    train: Dataset
    validation: Dataset
    calibration: Dataset
    test: Dataset

    def tensors(self, part: Dataset) -> tuple[Tensor, Tensor]:
        """Prepared images [n, C, H, W], channels last, and labels [n] of one part."""
        prepared, _ = prepare(part.images, self.input)
        images = torch.from_numpy(prepared).contiguous(memory_format=torch.channels_last)
        return images, torch.from_numpy(part.labels.copy())

    @property
    def sources(self) -> tuple[DataSource, ...]:
        """Provenance of the four parts."""
        return (
            source(self.train, "train", "train"),
            source(self.validation, "train", "validation"),
            source(self.calibration, "train", "calibration"),
            source(self.test, "test", "test"),
        )


def formulate(recipe: Recipe, data_dir: Path | None) -> Problem:
    """Load and split the recipe's data, and build its network and posterior.

    Raises:
        training.data.DataError, models.networks.NetworkError, training.posterior.PriorError
    """
    train = _load(recipe, "train", data_dir)
    test = _load(recipe, "test", data_dir)
    parts = hold_out(train, recipe.data.validation, recipe.data.calibration, recipe.seed)
    height, width, channels = train.images.shape[1:]
    architecture = recipe.network
    network = build(
        architecture.name,
        (channels, height, width),
        len(train.classes),
        channels=architecture.channels,
        kernel=architecture.kernel,
        hidden=architecture.hidden,
        activation=architecture.activation,
    )
    pixels = parts["train"].images / np.float32(255)
    input_spec = InputSpec(
        channels=channels,
        height=height,
        width=width,
        polarity=recipe.polarity,
        mean=tuple(round(float(value), 4) for value in pixels.mean(axis=(0, 1, 2))),
        std=tuple(round(float(value), 4) for value in pixels.std(axis=(0, 1, 2))),
    )
    return Problem(
        recipe=recipe,
        labels=train.classes,
        input=input_spec,
        network=network,
        posterior=recipe.prior.posterior(network, len(parts["train"].labels)),
        train=parts["train"],
        validation=parts["validation"],
        calibration=parts["calibration"],
        test=test,
    )


def hold_out(whole: Dataset, validation: int, calibration: int, seed: int) -> dict[str, Dataset]:
    """The parts "train", "validation" and "calibration" of the images given for training."""
    sizes = {"validation": validation, "calibration": calibration}
    split = data.stratified_split(whole.labels, sizes, seed)
    return {part: whole.select(indices) for part, indices in split.items()}


def source(dataset: Dataset, part: str, role: Role) -> DataSource:
    """Provenance of a data set, for the manifest."""
    return DataSource(
        name=dataset.name, part=part, role=role, size=len(dataset), sha256=dataset.sha256
    )


def _load(recipe: Recipe, part: data.Part, data_dir: Path | None) -> Dataset:
    if recipe.data.dataset is not None:
        return data.load(recipe.data.dataset, part, data_dir)
    assert recipe.data.folder is not None
    return data.load_folder(recipe.data.folder / part, recipe.data.channels)
