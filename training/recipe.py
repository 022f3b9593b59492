"""A recipe: one TOML file, one reproducible run."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from models.manifest import Name
from models.policy import Policy
from training.schedules import Schedule, constant, cooling, polynomial


class RecipeError(Exception):
    """A recipe that cannot be read; the message names the key and what is accepted."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(_Table):
    """Where the images come from, and how many are held out at random, by class.

    `dataset` names a data set; or `folder` holds `train/<class>/*.png` and `test/<class>/*.png`,
    read with `channels` channels.
    Sets under `ood` and `shift` are reported on, never fitted.
    """

    dataset: str | None = None
    folder: Path | None = None
    channels: Literal[1, 3] = 1
    validation: int = Field(gt=0)
    calibration: int = Field(gt=0)
    ood: tuple[str, ...] = ()
    shift: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dataset is None) == (self.folder is None):
            raise ValueError("give either dataset or folder")
        return self


class Architecture(_Table):
    """Arguments of `models.networks.build`."""

    name: Literal["lenet", "mlp"]
    channels: tuple[PositiveInt, ...] = ()
    kernel: PositiveInt = 5
    hidden: tuple[PositiveInt, ...]
    activation: Literal["relu", "silu", "tanh"] = "relu"


class Constant(_Table):
    """`training.schedules.constant`."""

    kind: Literal["constant"]
    step_size: float = Field(gt=0)


class Polynomial(_Table):
    """`training.schedules.polynomial`."""

    kind: Literal["polynomial"]
    a: float = Field(gt=0)
    b: float = Field(gt=0)
    gamma: float = Field(gt=0.5, le=1)


class Cooling(_Table):
    """`training.schedules.cooling`, over `epochs` epochs."""

    kind: Literal["cooling"]
    initial: float = Field(gt=0)
    final: float = Field(gt=0)
    epochs: int = Field(gt=0)


StepSizes = Annotated[Constant | Polynomial | Cooling, Field(discriminator="kind")]


class Sampler(_Table):
    """SGLD: a short SGD warm start, burn-in, then `samples` kept at equal distances.

    `trace` is the number of times in the sampling phase at which observables are recorded.
    """

    name: Literal["sgld"]
    temperature: float = Field(default=1.0, ge=0)
    chains: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    warm_start_epochs: int = Field(ge=0)
    warm_start_step_size: float = Field(gt=0)
    burn_in_epochs: int = Field(ge=0)
    sampling_epochs: int = Field(ge=0)
    samples: int = Field(ge=1)
    trace: int = Field(ge=4)
    schedule: StepSizes

    def step_sizes(self, steps_per_epoch: int) -> Schedule:
        """η_t, with t = 0 at the end of the warm start."""
        match self.schedule:
            case Constant(step_size=step_size):
                return constant(step_size)
            case Polynomial(a=a, b=b, gamma=gamma):
                return polynomial(a, b, gamma)
            case Cooling(initial=initial, final=final, epochs=epochs):
                return cooling(initial, final, epochs * steps_per_epoch)


class Recipe(_Table):
    """Everything that decides a run's result, besides the data itself."""

    name: Name
    version: Name = "1"
    seed: int = Field(ge=0)
    data: Data
    polarity: Literal["light-on-dark", "as-is"]
    network: Architecture
    prior_std: dict[str, float]
    sampler: Sampler
    members: int = Field(ge=1)
    group: int = Field(default=4, ge=1)
    score: Literal["predictive_entropy", "mutual_information", "max_probability"]
    policies: dict[Name, Policy]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (
            self.sampler.sampling_epochs
            and self.members > self.sampler.chains * self.sampler.samples
        ):
            raise ValueError("members exceed chains × samples")
        if "default" not in self.policies:
            raise ValueError('policies must contain "default"')
        return self


def names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("training") / "recipes"
    return sorted(Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".toml"))


def change(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with other values, checked anew; nested tables are merged.

    Raises:
        RecipeError: the new values do not fit.
    """
    content = recipe.model_dump()
    for key, value in values.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    return _validate(content, recipe.name)


def load(source: str) -> Recipe:
    """Read a recipe by its name, or from a TOML file.

    Raises:
        RecipeError: there is no such recipe, or it does not fit; the message says where.
    """
    path = Path(source)
    if path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}: not UTF-8: {error.reason}") from error
    elif source in names():
        text = (resources.files("training") / "recipes" / f"{source}.toml").read_text("utf-8")
    else:
        known = ", ".join(names())
        raise RecipeError(f"no recipe {source!r}: use one of {known}, or the path of a .toml file")
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{source}: not TOML: {error}") from error
    recipe = _validate(content, source)
    if not recipe.sampler.sampling_epochs:
        raise RecipeError(f"{source}: sampler.sampling_epochs: must be positive to draw samples")
    return recipe


def _validate(content: dict[str, Any], source: str) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        problem = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise RecipeError(f"{source}: {where}: {problem}") from error
