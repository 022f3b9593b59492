"""What every method comes down to: weight vectors of the one network, and what they cost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from training.recipe import Recipe

DRAWS = 32
"""Weight vectors drawn from a fitted Gaussian or from dropout masks."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ensemble:
    """A fitted method.

    Attributes:
        positions: weights of the members, [M, D].
        epochs: passes over the training images in all.
        seconds: CPU seconds of the training, all processes together.
        temperature: T_conf measured while sampling; None for a method that does not sample.
        settings: what was chosen on the validation images.
        together: whether the members answer together; if not, each is judged alone.
    """

    positions: NDArray[np.float32]
    epochs: float
    seconds: float
    temperature: float | None = None
    settings: dict[str, float] = field(default_factory=dict)
    together: bool = True

    @classmethod
    def read(cls, file: Path) -> Ensemble:
        """From an `.npz` file that `write` has made."""
        with np.load(file) as archive:
            return cls(archive["positions"], **json.loads(str(archive["facts"])))

    def write(self, file: Path) -> None:
        """To an `.npz` file, atomically."""
        names = ("epochs", "seconds", "temperature", "settings", "together")
        facts = json.dumps({name: getattr(self, name) for name in names})
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}")
        with temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, positions=self.positions, facts=np.array(facts))
        os.replace(temporary, file)


def budget(recipe: Recipe) -> int:
    """Epochs in all, over the chains of a recipe, from their start to their last sample."""
    sampler = recipe.sampler
    epochs = sampler.warm_start_epochs + sampler.burn_in_epochs + sampler.sampling_epochs
    return sampler.chains * epochs


def timed(work: Callable[[], T], record: Path | None = None) -> tuple[T, float]:
    """What `work` returns, and the CPU seconds that it took.

    Args:
        work: the training.
        record: a file that remembers the seconds of earlier attempts, where `work` resumes them.
    """
    before = _cpu_seconds()
    if record is None:
        return work(), _cpu_seconds() - before
    earlier = float(record.read_text()) if record.exists() else 0.0
    record.parent.mkdir(parents=True, exist_ok=True)
    try:
        result = work()
    finally:
        seconds = earlier + _cpu_seconds() - before
        record.write_text(str(seconds))
    return result, seconds


def _cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
