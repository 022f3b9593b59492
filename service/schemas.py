"""The answers as they are described in OpenAPI. They are written without passing through these."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.policy import Decision, MembersMode, Reason
from models.prediction_sets import ScoreName

Probability = Annotated[float, Field(ge=0, le=1)]


Level = Annotated[float, Field(ge=0)]
Grey = Annotated[list[Level], Field(min_length=1)]
Rgb = Annotated[
    list[Annotated[list[Level], Field(min_length=3, max_length=3)]], Field(min_length=1)
]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Base64Image(_Answer):
    """A PNG, JPEG, WebP or BMP file."""

    base64: str = Field(description="The file's bytes in base64 (RFC 4648), without line breaks.")


class PixelImage(_Answer):
    """Pixels as numbers, row by row: grey `[[...], ...]` or RGB `[[[r, g, b], ...], ...]`."""

    pixels: Annotated[list[Grey], Field(min_length=1)] | Annotated[list[Rgb], Field(min_length=1)]
    maximum: float | None = Field(
        None, gt=0, description="What full brightness is; without it, integers 0 to 255."
    )


class PredictRequest(_Answer):
    """Images in JSON."""

    images: list[Base64Image | PixelImage] = Field(min_length=1)


class FaultBody(_Answer):
    """One field that is wrong."""

    pointer: str = Field(examples=["/body/images/0/pixels/3/4"])
    message: str
    limit: float | None = Field(None, description="The limit that was exceeded.")


class Problem(BaseModel):
    """An error, as RFC 9457 has it; `error` repeats `detail`."""

    type: str = Field(examples=["urn:problem-type:langevin-gate:invalid-input"])
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    error: str
    request_id: str
    errors: list[FaultBody] | None = None
    retry_after: int | None = Field(None, description="Seconds; also in the Retry-After header.")


class Share(_Answer):
    """The entropies as shares of ln K."""

    predictive_entropy: Probability
    expected_entropy: Probability
    mutual_information: Probability


class Uncertainty(_Answer):
    """How sure the ensemble is, and whether its members agree."""

    predictive_entropy: float = Field(ge=0, description="H[mean p]: the total.")
    expected_entropy: float = Field(ge=0, description="mean H[p]: the image is ambiguous.")
    mutual_information: float = Field(ge=0, description="Their difference: the members disagree.")
    unit: Literal["nat"]
    maximum: float = Field(description="ln K, the largest entropy of K classes.")
    share: Share


class DetectorScore(_Answer):
    """One detector's score, and how unusual it is on images like those of training."""

    score: float | None
    p_value: Probability


class Ood(_Answer):
    """Whether the image is unlike the training data, at a known false-alarm rate."""

    flag: bool
    p_value: Probability = Field(
        description="Small means unlike the training data; within the predicted class if the "
        "policy is conditional on it."
    )
    alpha: Probability | None = Field(
        description="The promised false-alarm rate; null if fdr is promised instead."
    )
    fdr: Probability | None = Field(
        description="The promised false-discovery rate among the flags of this request."
    )
    level: Probability = Field(
        description="The flag is raised at p_value <= level: alpha, or a level that keeps what is "
        "promised."
    )
    score: float | None
    detector: str = Field(description="The detector that raises the flag.")
    members_used: int = Field(
        description="Members that scores, flag and prediction_set rest on, however many are asked."
    )
    detectors: dict[str, DetectorScore] = Field(
        description="Those that the flag rests on; with explain, all."
    )


class InputInfo(_Answer):
    """The image as it was sent, and what was done to it."""

    width: int
    height: int
    mode: str = Field(description="How it was stored: L, RGB, P, 1, I;16 ...")
    applied: list[str] = Field(description='Steps that changed it; ["none"] if none did.')


class Result(_Answer):
    """The answer to one image."""

    decision: Decision
    reasons: list[Reason] = Field(description="Why it abstains; empty on accept.")
    label: str | None
    probabilities: dict[str, Probability] | None = Field(
        description="Mean over members of probabilities; with top_k, of those classes only."
    )
    uncertainty: Uncertainty | None
    ood: Ood | None
    prediction_set: list[str] | None = Field(
        description="The labels that the image may have, the most probable first; null if it could "
        "not be answered, or if the model has no sets."
    )
    members_used: int = Field(
        description="Members that probabilities, label and uncertainty rest on."
    )
    input: InputInfo | None
    error: Problem | None = Field(description="Set when this image could not be answered.")
    members: list[dict[str, Probability]] | None = Field(
        None, description="With explain: the probabilities of each member by itself."
    )


class ModelInfo(_Answer):
    """Which model answered."""

    name: str
    version: str
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    members: int
    verified: bool = Field(description="Whether the sampler's diagnostics passed.")


class Timing(_Answer):
    """Where the time went, in milliseconds."""

    decode: float = Field(
        description="Opening the images, and decoding them if any is large; otherwise they are "
        "decoded in their first step."
    )
    queue: float = Field(description="Until a step first took one of them.")
    infer: float = Field(description="From then until all were settled.")
    total: float = Field(description="All of it, and reading the body.")


class CertificateInfo(_Answer):
    """What was proved, on calibration images, of all images that a policy accepts."""

    selective_risk: Probability = Field(
        description="At most this share of the accepted images gets a wrong label, and"
    )
    confidence: Probability = Field(
        description="this is the probability that risk_bound and coverage_bound both hold."
    )
    coverage: Probability = Field(description="Share of the calibration images accepted.")
    calibration_size: int
    status: Literal["valid"]
    risk_bound: Probability = Field(description="What was proved, at most selective_risk.")
    coverage_bound: Probability = Field(description="At least this share is accepted.")
    alpha: Probability = Field(description="False-alarm rate of the flag it holds for.")
    min_probability: Probability = Field(description="Least probability it holds for.")
    assumption: str = Field(description="Which images it holds for.")


class MembersInfo(_Answer):
    """How many members the images were shown to."""

    mode: MembersMode = Field(
        description="all; exact: until the decision of all was settled, whatever the others may "
        "say; confident: until it was settled with confidence."
    )
    available: int
    differing_rate: Probability = Field(
        description="At most this share of the decisions differs from those of all members, and"
    )
    confidence: Probability = Field(description="this is the probability that it holds.")


class PredictResponse(_Answer):
    """One result an image, in the order in which they were sent."""

    results: list[Result]
    model: ModelInfo
    policy: str
    members: MembersInfo
    certificate: CertificateInfo | None = Field(
        description="Of the policy in use; null if it has none, if alpha was changed, or with fdr."
    )
    request_id: str
    timing_ms: Timing


class VerdictInfo(_Answer):
    """Whether the sampler was at equilibrium."""

    verified: bool
    failed: list[str]


class PolicyInfo(_Answer):
    """Levels at which the gate abstains."""

    alpha: float
    min_probability: float
    score: str | None = Field(description="Detector that raises the flag, if not the model's.")
    alpha_confidence: float | None = Field(
        description="Confidence that alpha holds for this calibration; null: on average over them."
    )
    conditional_on: Literal["class"] | None = Field(
        description="Whether alpha holds within each predicted class; null: on average over them."
    )
    members: MembersMode = Field(description="How many members an image is shown to.")
    settled_at: list[float] | None = Field(
        description="Of confident: mean probability of the label that settles it after the first "
        "group of members, four groups, sixteen and so on; the last for all further times."
    )


class PredictionSetInfo(_Answer):
    """What the prediction sets promise: they hold the true label with this probability."""

    score: ScoreName
    coverage: Probability
    calibration_size: int
    threshold: float = Field(description="The largest score of a label within a set.")


class AgreementInfo(_Answer):
    """How often a confident policy decides otherwise than all members would."""

    rate: Probability = Field(description="At most so seldom, of images like those, and")
    confidence: Probability = Field(description="this is the probability that it holds.")
    calibration_size: int
    differing: int = Field(description="Calibration images on which it does.")
    bound: Probability = Field(description="The exact binomial bound that was proved.")
    mean_members: float = Field(description="Members that calibration images are shown to.")


class InputSpecInfo(_Answer):
    """What the network expects; images of other sizes and modes are brought to it."""

    channels: int
    height: int
    width: int
    polarity: str
    mean: list[float]
    std: list[float]


class ModelDetails(ModelInfo):
    """A model that is served."""

    labels: list[str]
    input: InputSpecInfo
    verdict: VerdictInfo
    policies: dict[str, PolicyInfo]
    default_policy: str
    detector: str
    calibration_size: int
    certificate: CertificateInfo | None = Field(description="Of the default policy.")
    certificates: dict[str, CertificateInfo] = Field(description="By policy.")
    agreements: dict[str, AgreementInfo] = Field(
        description="How often confident policies differ from all members, by policy."
    )
    prediction_sets: PredictionSetInfo | None
    runtime: str
    device: str


class ModelList(_Answer):
    """The models that are served."""

    models: list[ModelDetails]


class Live(_Answer):
    """The process answers."""

    live: bool


class Ready(_Answer):
    """Whether requests should be sent here; `checks` only with ?verbose."""

    ready: bool
    checks: dict[str, bool] | None = None
