"""A recipe: one TOML file, one reproducible run."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from models.detectors import DETECTORS
from models.manifest import Name, SetLevels
from models.networks import Network
from models.policy import MembersMode, Policy, SettledAt
from training.posterior import Posterior, PriorError
from training.priors import Family
from training.schedules import (
    Schedule,
    constant,
    cooling,
    cyclical,
    polynomial,
    sampling_stage,
)

UNLIKELY = {
    "batch_norm": "BatchNorm lets the images of a batch change each other's likelihood",
    "dropout": "dropout has no likelihood of its own, and the sampler's noise takes its place",
    "augmentation": "augmented copies are not independent data, and change the likelihood",
}
"""Keys that other tools have, and why no recipe does (`models.networks`)."""


class RecipeError(Exception):
    """A recipe that cannot be read; the message names the key and what is accepted."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_broken_likelihood(cls, content: Any) -> Any:
        for key, reason in UNLIKELY.items():
            if isinstance(content, dict) and key in content:
                raise ValueError(f"{key} is refused: {reason}; remove it")
        return content


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


class Prior(_Table):
    """p(θ): a family (`training.priors`), and σ for every parameter of the network.

    Either `weight_gain` and `bias_std`: σ² = gain / fan-in for the weights, one gain or one for
    each layer. Or `std`: one σ for all parameters (isotropic), or one for each by name.
    """

    family: Family
    chosen: str = "by hand"
    degrees_of_freedom: float = Field(default=5.0, gt=2)
    weight_gain: float | dict[str, float] | None = None
    bias_std: float | None = None
    std: float | dict[str, float] | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        scaled = (self.weight_gain is not None, self.bias_std is not None)
        if scaled != ((True, True) if self.std is None else (False, False)):
            raise ValueError("give either weight_gain and bias_std, or std alone")
        return self

    def stds(self, network: Network) -> dict[str, float]:
        """σ of every parameter of `network`.

        Raises:
            PriorError: gains do not name the network's layers.
        """
        if isinstance(self.std, dict):
            return self.std
        if self.std is not None:
            return dict.fromkeys(network.shapes, self.std)
        names = [layer.name for layer in network.layers]
        gains = self.weight_gain
        if not isinstance(gains, dict):
            assert gains is not None
            gains = dict.fromkeys(names, gains)
        if sorted(gains) != sorted(names):
            raise PriorError(f"weight_gain must name the layers {names}, got {list(gains)}")
        stds: dict[str, float] = {}
        for layer in network.layers:
            stds[f"{layer.name}.weight"] = math.sqrt(max(gains[layer.name], 0) / layer.fan_in)
            stds[f"{layer.name}.bias"] = self.bias_std or 0.0
        return stds

    def posterior(self, network: Network, num_data: int) -> Posterior:
        """The posterior of `network` given N examples.

        Raises:
            PriorError: a parameter has no σ, or one that is not positive.
        """
        return Posterior.build(
            network, num_data, self.stds(network), self.family, self.degrees_of_freedom
        )


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


class Cyclical(_Table):
    """`training.schedules.cyclical`, in cycles of `cycle_epochs` epochs.

    Weights are kept, and temperatures measured, after the share `exploration` of each cycle. With
    `cold_exploration` steps have no noise before it (cSGLD); otherwise they always have theirs, and
    long steps mix what short ones then bring to its temperature.
    """

    kind: Literal["cyclical"]
    initial: float = Field(gt=0)
    cycle_epochs: int = Field(gt=0)
    exploration: float = Field(ge=0, lt=1)
    cold_exploration: bool = False


StepSizes = Annotated[Constant | Polynomial | Cooling | Cyclical, Field(discriminator="kind")]


class Sampler(_Table):
    """A short SGD warm start, burn-in, then `samples` weight vectors kept at equal distances.

    Attributes:
        name: the method, one file of `training.samplers`.
        temperature: T, in posterior units.
        chains: C.
        prior_starts: how many of the chains, from the second on, every other one, start at a draw
            from the prior and spend the warm start's epochs on Langevin steps.
        warm_start: what SGD descends, from He's initialisation: "map", Ū; or "likelihood", the mean
            NLL alone, which leaves weights that the data leave free the spread they began with.
        momentum: decay of the momentum over one step, of underdamped samplers.
        minibatches: how they are drawn (`training.minibatches`).
        layer_step: factor on the step size of single layers.
        max_noise_ratio: keep no sample while minibatch noise exceeds this share of the injected
            noise in any layer.
        samples: weight vectors kept, S.
        trace: number of times in the sampling phase at which observables are recorded.
        half_step_epochs: epochs at half the final step size after sampling, as a check.
    """

    name: Literal["sgld", "psgld", "sghmc", "baoab", "constant-sgd"]
    temperature: float = Field(default=1.0, ge=0)
    chains: int = Field(ge=1)
    prior_starts: int = Field(default=0, ge=0)
    batch_size: int = Field(ge=1)
    minibatches: Literal["shuffled", "preferential"] = "shuffled"
    warm_start: Literal["map", "likelihood"] = "map"
    warm_start_epochs: int = Field(ge=0)
    warm_start_step_size: float = Field(gt=0)
    burn_in_epochs: int = Field(ge=0)
    sampling_epochs: int = Field(ge=0)
    half_step_epochs: int = Field(default=0, ge=0)
    samples: int = Field(ge=1)
    trace: int = Field(ge=4)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    layer_step: dict[str, PositiveFloat] = Field(default_factory=dict)
    max_noise_ratio: PositiveFloat | None = None
    schedule: StepSizes

    @model_validator(mode="after")
    def _some_warm_starts(self) -> Self:
        if self.prior_starts > self.chains // 2:
            raise ValueError("prior_starts exceed half of the chains")
        return self

    def starts_from_prior(self, chain: int) -> bool:
        """Whether a chain starts at a draw from the prior: chains 1, 3, 5 and so on do."""
        return chain % 2 == 1 and chain // 2 < self.prior_starts

    def samples_now(self, steps_per_epoch: int) -> Callable[[int], bool]:
        """Whether step t may be kept: it may not in the exploration stage of a cycle."""
        if isinstance(self.schedule, Cyclical):
            return sampling_stage(
                self.schedule.cycle_epochs * steps_per_epoch, self.schedule.exploration
            )
        return lambda step: True

    @property
    def explores_cold(self) -> bool:
        """Whether steps that may not be kept have no noise."""
        return isinstance(self.schedule, Cyclical) and self.schedule.cold_exploration

    @property
    def weights_samples(self) -> bool:
        """Whether samples count in proportion to their step size (Welling & Teh 2011)."""
        return isinstance(self.schedule, Polynomial)

    def step_sizes(self, steps_per_epoch: int) -> Schedule:
        """η_t, with t = 0 at the end of the warm start."""
        match self.schedule:
            case Constant(step_size=step_size):
                return constant(step_size)
            case Polynomial(a=a, b=b, gamma=gamma):
                return polynomial(a, b, gamma)
            case Cooling(initial=initial, final=final, epochs=epochs):
                return cooling(initial, final, epochs * steps_per_epoch)
            case Cyclical(initial=initial, cycle_epochs=epochs):
                return cyclical(initial, epochs * steps_per_epoch)


class CertifiedPolicy(_Table):
    """Levels of which calibration finds `min_probability`, the least for which r* is proved.

    P(wrong | accepted) ≤ r* = `target_risk`, with probability ≥ `confidence`
    (`models.certificate`). `members` and `settled_at` are those of `models.policy.Policy`.
    """

    alpha: float = Field(gt=0, lt=1)
    target_risk: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    members: MembersMode = "all"
    settled_at: SettledAt | None = None

    @model_validator(mode="after")
    def _settled_when_confident(self) -> Self:
        self.policy(0.0)
        return self

    def policy(self, threshold: float) -> Policy:
        """The policy with the probability that was found."""
        return Policy(
            alpha=self.alpha,
            min_probability=threshold,
            members=self.members,
            settled_at=self.settled_at,
        )


def _levels(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    certified = not content.keys().isdisjoint(("target_risk", "confidence"))
    if certified == ("min_probability" in content):
        raise ValueError("give either min_probability, or target_risk and confidence")
    if certified and not content.keys().isdisjoint(("alpha_confidence", "conditional_on")):
        raise ValueError(
            "a certificate is proved of the marginal flag alone: give either target_risk and "
            "confidence, or alpha_confidence or conditional_on"
        )
    return (CertifiedPolicy if certified else Policy).model_validate(content)


Levels = Annotated[Policy | CertifiedPolicy, BeforeValidator(_levels)]


class Agreement(_Table):
    """What confident policies must keep: P(decision differs from that of all members) ≤ `rate`."""

    rate: float = Field(default=0.001, gt=0, lt=1)
    confidence: float = Field(default=0.99, gt=0, lt=1)


def _detector(name: str) -> str:
    if name not in DETECTORS:
        raise ValueError(f"no detector {name!r}: use one of {', '.join(DETECTORS)}")
    return name


class Recipe(_Table):
    """Everything that decides a run's result, besides the data itself."""

    name: Name
    version: Name = "1"
    seed: int = Field(ge=0)
    data: Data
    polarity: Literal["light-on-dark", "as-is"]
    network: Architecture
    prior: Prior
    sampler: Sampler
    members: int = Field(ge=1)
    group: int = Field(default=4, ge=1)
    selection: Literal["thinned", "greedy"] = "greedy"
    score: Annotated[str, AfterValidator(_detector)]
    policies: dict[Name, Levels]
    agreement: Agreement = Agreement()
    prediction_sets: SetLevels | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (
            self.sampler.sampling_epochs
            and self.members > self.sampler.chains * self.sampler.samples
        ):
            raise ValueError("members exceed chains × samples")
        if self.members % min(self.group, self.members):
            raise ValueError(
                f"members = {self.members} must be a multiple of group = {self.group}, "
                "the members that are evaluated together"
            )
        if "default" not in self.policies:
            raise ValueError('policies must contain "default"')
        for levels in self.policies.values():
            if isinstance(levels, Policy) and levels.score is not None:
                _detector(levels.score)
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
