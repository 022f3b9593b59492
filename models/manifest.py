"""The bundle's manifest: what the model is, where it came from and what was measured of it."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from models.certificate import Certificate
from models.policy import Policy
from models.prediction_sets import SCORES, PredictionSets, ScoreName
from models.preprocessing import InputSpec

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


Role = Literal["train", "validation", "calibration", "test", "ood", "shift"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkSpec(_Record):
    """Arguments of `models.networks.build`, and D, the weights of one member."""

    name: str
    channels: tuple[int, ...]
    kernel: int
    hidden: tuple[int, ...]
    activation: str
    num_weights: int = Field(gt=0)


class Members(_Record):
    """Which posterior samples are served: member m is sample `samples[m]` of chain `chains[m]`.

    `group` is the number of members that are evaluated together, a divisor of their number; OOD
    scores and prediction sets rest on the first group alone. `selection` says how they were chosen:
    at equal distances ("thinned"), or one by one for the least distance to the predictive of all
    samples ("greedy").
    """

    count: int = Field(gt=0)
    group: int = Field(gt=0)
    chains: tuple[int, ...]
    samples: tuple[int, ...]
    selection: Literal["thinned", "greedy"] = "thinned"

    @model_validator(mode="after")
    def _one_entry_a_member(self) -> Self:
        if not len(self.chains) == len(self.samples) == self.count:
            raise ValueError("members need one chain and one sample each")
        if self.count % self.group:
            raise ValueError(f"group {self.group} does not divide the {self.count} members")
        return self


class PosteriorSpec(_Record):
    """U(θ) = −Σᵢ log p(yᵢ|xᵢ,θ) − log p(θ), sampled at exp(−U/T); T = 1 is Bayes.

    The prior is one of `training.priors`, with a standard deviation for every parameter;
    `prior_chosen` says how its scale was chosen.
    """

    num_data: int = Field(gt=0)
    temperature: float = Field(ge=0)
    prior_family: str = "gaussian"
    prior_chosen: str = "by hand"
    prior_std: dict[str, float]


class DataSource(_Record):
    """One data set and what it was used for; `sha256` is that of its images and labels."""

    name: str
    part: str
    role: Role
    size: int
    sha256: Digest


class Check(_Record):
    """One quantity of the sampler, and the bounds in which it passes."""

    value: float
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _can_fail(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError("a check needs a lower or an upper bound")
        return self

    @property
    def passed(self) -> bool:
        """Whether the value lies within its bounds."""
        above = self.low is None or self.value >= self.low
        return above and (self.high is None or self.value <= self.high)

    @property
    def accepted(self) -> str:
        """The bounds in words, for people."""
        if self.low is None or self.high is None:
            return f"≤ {self.high:g}" if self.low is None else f"≥ {self.low:g}"
        return f"{self.low:g} to {self.high:g}" if self.low < self.high else f"{self.low:g}"


class Verdict(_Record):
    """Whether the sampler was at equilibrium: `verified` only if every check passed."""

    checks: dict[str, Check]

    @property
    def verified(self) -> bool:
        """Whether there are checks and all passed."""
        return bool(self.checks) and all(check.passed for check in self.checks.values())

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that did not pass."""
        return tuple(name for name, check in self.checks.items() if not check.passed)


class CalibrationSpec(_Record):
    """How `calibration.npz` was made: n random held-out images; `score` raises the OOD flag.

    `fused` names the detectors of which `models.fusion` makes one.
    """

    size: int = Field(gt=0)
    seed: int
    score: str
    fused: tuple[str, ...]


class CertificateSpec(_Record):
    """A `models.certificate.Certificate` of one policy: what was proved on calibration images."""

    target_risk: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    calibration_size: int = Field(gt=0)
    alpha: float
    threshold: float
    accepted: int = Field(gt=0)
    errors: int = Field(ge=0)
    risk_bound: float = Field(gt=0)
    coverage_bound: float = Field(ge=0)

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        if not self.errors <= self.accepted <= self.calibration_size:
            raise ValueError("errors exceed accepted, or accepted exceeds calibration_size")
        if not self.errors / self.accepted <= self.risk_bound <= self.target_risk:
            raise ValueError("risk_bound must lie between errors / accepted and target_risk")
        if self.coverage_bound > self.coverage:
            raise ValueError("coverage_bound exceeds accepted / calibration_size")
        return self

    @classmethod
    def of(cls, certificate: Certificate) -> Self:
        """The record of a certificate."""
        return cls(**asdict(certificate))

    def holds_for(self, policy: Policy) -> bool:
        """Whether these are the levels that it was proved of."""
        levels = Policy(alpha=self.alpha, min_probability=self.threshold)
        return levels == policy.asking("all")

    @property
    def coverage(self) -> float:
        """Share of the calibration images that the gate accepts."""
        return self.accepted / self.calibration_size


class AgreementSpec(_Record):
    """How seldom a confident policy decides otherwise than all members would.

    At most a share `rate` of images like the calibration images is decided otherwise, with
    probability ≥ `confidence`: of `calibration_size` of these `differing` were, and `bound` is the
    exact binomial bound (`training.settling`). They are shown to `mean_members` members.
    """

    rate: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    calibration_size: int = Field(gt=0)
    differing: int = Field(ge=0)
    bound: float = Field(gt=0)
    mean_members: float = Field(gt=0)

    @model_validator(mode="after")
    def _rate_is_proved(self) -> Self:
        if not self.differing / self.calibration_size <= self.bound <= self.rate:
            raise ValueError("bound must lie between differing / calibration_size and rate")
        return self


class SetLevels(_Record):
    """What a recipe asks of prediction sets: a score of `SCORES`, and P(y ∈ C(x)) ≥ `coverage`."""

    score: ScoreName
    coverage: float = Field(gt=0, lt=1)


class PredictionSetSpec(SetLevels):
    """The `models.prediction_sets.PredictionSets` that keep what was asked."""

    calibration_size: int = Field(gt=0)
    threshold: float

    @cached_property
    def fitted(self) -> PredictionSets:
        """What makes the sets."""
        return PredictionSets(
            SCORES[self.score], self.coverage, self.calibration_size, self.threshold
        )


def _this_schema(version: object) -> object:
    if version in (1, 2, 3):
        raise ValueError("made by an older version: calibrate, evaluate and publish its run again")
    return version


class Manifest(_Record):
    """`manifest.json`. The sha256 of its bytes is the bundle's digest."""

    schema_version: Annotated[Literal[4], BeforeValidator(_this_schema)] = 4
    name: Name
    version: Name
    labels: tuple[str, ...] = Field(min_length=2)
    input: InputSpec
    network: NetworkSpec
    members: Members
    posterior: PosteriorSpec
    sampler: dict[str, Any]
    data: tuple[DataSource, ...]
    verdict: Verdict
    calibration: CalibrationSpec
    policies: dict[Name, Policy] = Field(min_length=1)
    certificates: dict[Name, CertificateSpec] = Field(default_factory=dict)
    agreements: dict[Name, AgreementSpec] = Field(default_factory=dict)
    prediction_sets: PredictionSetSpec | None = None
    results: dict[str, Any]
    libraries: dict[str, str]
    files: dict[str, Digest]

    @model_validator(mode="after")
    def _has_default_policy(self) -> Self:
        if "default" not in self.policies:
            raise ValueError('policies must contain "default"')
        return self

    @model_validator(mode="after")
    def _certificates_fit(self) -> Self:
        for name, certificate in self.certificates.items():
            policy = self.policies.get(name)
            if policy is None or not certificate.holds_for(policy):
                raise ValueError(f"certificate {name!r} is of no policy of that name and levels")
            if certificate.calibration_size != self.calibration.size:
                raise ValueError(f"certificate {name!r} is of another number of calibration images")
        return self

    @model_validator(mode="after")
    def _agreements_fit(self) -> Self:
        confident = {name for name, each in self.policies.items() if each.members == "confident"}
        if set(self.agreements) != confident:
            raise ValueError("agreements must be of the policies with members = confident")
        if any(each.calibration_size != self.calibration.size for each in self.agreements.values()):
            raise ValueError("agreements are of another number of calibration images")
        return self

    @model_validator(mode="after")
    def _prediction_sets_fit(self) -> Self:
        sets = self.prediction_sets
        if sets is not None and sets.calibration_size != self.calibration.size:
            raise ValueError("prediction_sets are of another number of calibration images")
        return self

    @cached_property
    def maximum_entropy(self) -> float:
        """Ln K, the largest entropy of K classes, in nats."""
        return math.log(len(self.labels))
