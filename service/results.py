"""Evidence → the answer's JSON, one result an image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from models.conformal import CalibrationError
from models.detectors import DETECTORS
from models.manifest import CertificateSpec
from models.policy import MembersMode, Policy, decision
from service.cases import Case, Rule
from service.errors import GateError, InferenceError, InvalidError
from service.evidence import Evidence
from service.intake import Prepared
from service.judgement import Judgement, discovery_level, judge
from service.repository import Model

PROBLEM_TYPE = "urn:problem-type:langevin-gate:"
ASSUMPTION = "Images are drawn independently from the same source as the calibration images."

Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Options:
    """What one request asks for.

    Attributes:
        policy_name: the policy's name.
        policy: its levels, `alpha` as the request has it.
        fdr: false-discovery rate among the request's images, in place of the policy's α.
        explain: add the probabilities of each member.
        top_k: tell this many classes, the most probable first; None tells all, in label order.
        detector: that raises the flag.
        rule: that settles its images.
    """

    policy_name: str
    policy: Policy
    fdr: float | None
    explain: bool
    top_k: int | None
    detector: str
    rule: Rule


@lru_cache(maxsize=256)
def choose_options(
    model: Model,
    policy: str,
    alpha: float | None = None,
    fdr: float | None = None,
    explain: bool = False,
    top_k: int | None = None,
    members: MembersMode | None = None,
) -> Options:
    """Check a request's options against the model. The same options are the same object.

    Raises:
        InvalidError: there is no such policy, its promise cannot be kept at `alpha`, both `alpha`
            and `fdr` are given, there are fewer than `top_k` classes, or a policy is to be
            confident that was never proved to be.
    """
    policies, classes = model.manifest.policies, len(model.manifest.labels)
    if (levels := policies.get(policy)) is None:
        raise InvalidError(f"there is no policy {policy!r}: use one of {', '.join(policies)}").at(
            "/query/policy"
        )
    if top_k is not None and top_k > classes:
        raise InvalidError(f"top_k is {top_k}, but there are {classes} classes", limit=classes).at(
            "/query/top_k"
        )
    if alpha is not None:
        if fdr is not None:
            raise InvalidError("give either alpha or fdr").at("/query/fdr")
        levels = levels.model_copy(update={"alpha": alpha})
        try:
            model.bundle.calibration.check({policy: levels}, model.manifest.labels)
        except CalibrationError as error:
            raise InvalidError(str(error)).at("/query/alpha") from error
    levels = _with_members(policy, levels, "all" if explain else members)
    calibration, detectors = model.bundle.calibration, model.bundle.detectors
    level = calibration.level(levels) if fdr is None else None
    detector = calibration.detector(levels)
    rule = Rule(levels, level, frozenset(DETECTORS) if explain else detectors.needed(detector))
    return Options(policy, levels, fdr, explain, top_k, detector, rule)


def _with_members(name: str, policy: Policy, members: MembersMode | None) -> Policy:
    if members is None or members == policy.members:
        return policy
    if members == "confident":
        message = f"policy {name!r} is not confident: use members = all or exact"
        raise InvalidError(message).at("/query/members")
    return policy.asking(members)


@lru_cache(maxsize=256)
def members_info(model: Model, options: Options) -> Json:
    """How many members the images are shown to, and how often that may change a decision."""
    content: Json = {"mode": options.policy.members, "available": model.runtime.members}
    if options.policy.members != "confident":
        return content | {"differing_rate": 0.0, "confidence": 1.0}
    agreement = model.manifest.agreements[options.policy_name]
    return content | {"differing_rate": agreement.rate, "confidence": agreement.confidence}


def problem(error: GateError, request_id: str) -> Json:
    """An error as an RFC 9457 problem object."""
    content: Json = {
        "type": PROBLEM_TYPE + error.kind,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "error": error.detail,
        "request_id": request_id,
    }
    if error.faults:
        content["errors"] = [fault.as_dict() for fault in error.faults]
    if error.retry_after is not None:
        content["retry_after"] = error.retry_after
    return content


@lru_cache(maxsize=8)
def model_info(model: Model) -> Json:
    """Which model answers, as every answer says it."""
    manifest = model.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": f"sha256:{model.bundle.digest}",
        "members": model.runtime.members,
        "verified": manifest.verdict.verified,
    }


def model_details(model: Model, default_policy: str) -> Json:
    """All that a client may want to know of a model."""
    manifest = model.manifest
    certificates = {name: _promise(each) for name, each in manifest.certificates.items()}
    sets = manifest.prediction_sets
    return model_info(model) | {
        "labels": list(manifest.labels),
        "input": manifest.input.model_dump(mode="json"),
        "verdict": {
            "verified": manifest.verdict.verified,
            "failed": list(manifest.verdict.failed),
        },
        "policies": {name: levels.model_dump() for name, levels in manifest.policies.items()},
        "default_policy": default_policy,
        "detector": manifest.calibration.score,
        "calibration_size": manifest.calibration.size,
        "certificate": certificates.get(default_policy),
        "certificates": certificates,
        "agreements": {name: each.model_dump() for name, each in manifest.agreements.items()},
        "prediction_sets": sets.model_dump() if sets else None,
        "runtime": model.runtime.name,
        "device": model.runtime.device,
    }


@lru_cache(maxsize=256)
def certificate(model: Model, options: Options) -> Json | None:
    """What was proved of the levels in use; None if nothing was, or the request changed them."""
    proved = model.manifest.certificates.get(options.policy_name)
    if proved is None or not proved.holds_for(options.policy) or options.fdr is not None:
        return None
    return _promise(proved)


def forget_models() -> None:
    """Let go of the models that are not served any more."""
    for remembered in (choose_options, members_info, model_info, certificate):
        remembered.cache_clear()


def _promise(proved: CertificateSpec) -> Json:
    return {
        "selective_risk": proved.target_risk,
        "confidence": proved.confidence,
        "coverage": proved.coverage,
        "calibration_size": proved.calibration_size,
        "status": "valid",
        "risk_bound": proved.risk_bound,
        "coverage_bound": proved.coverage_bound,
        "alpha": proved.alpha,
        "min_probability": proved.threshold,
        "assumption": ASSUMPTION,
    }


def results(
    model: Model, cases: Sequence[Case | GateError], options: Options, request_id: str
) -> list[Json]:
    """One result an image, in order.

    Args:
        model: who answers.
        cases: every image of the request, settled; or why it is none.
        options: what the request asks for.
        request_id: for the problem objects.
    """
    judgements = iter(_judgements(model, cases, options))
    told = []
    for case in cases:
        if (error := error_of(case)) is not None:
            told.append(_refused(error, request_id))
            continue
        assert isinstance(case, Case)
        assert isinstance(case.image, Prepared)
        judgement, info = next(judgements), case.image.info
        if judgement.evidence.finite:
            told.append(_answered(model, judgement, options, info))
        else:
            told.append(_unanswered(model, judgement, options, info, request_id))
    return told


def _judgements(
    model: Model, cases: Sequence[Case | GateError], options: Options
) -> Sequence[Judgement]:
    """Those of the steps; or of all together, if a false-discovery rate is asked for."""
    usable = [case for case in cases if isinstance(case, Case) and error_of(case) is None]
    if options.fdr is None or not usable:
        return [case.judgement for case in usable if case.judgement is not None]
    evidence = [case.known for case in usable]
    level = discovery_level(model.bundle, options.policy, options.fdr, evidence)
    return judge(model.bundle, options.policy, level, evidence)


def _refused(error: GateError, request_id: str) -> Json:
    return {
        "decision": "abstain",
        "reasons": ["input"],
        "label": None,
        "probabilities": None,
        "uncertainty": None,
        "ood": None,
        "prediction_set": None,
        "members_used": 0,
        "input": None,
        "error": problem(error, request_id),
    }


def _unanswered(
    model: Model, judgement: Judgement, options: Options, info: Mapping[str, Any], request_id: str
) -> Json:
    """Of an image whose evidence is not finite."""
    scores, size = judgement.evidence.look.scores, model.bundle.calibration.size
    unknown = {"score": None, "p_value": 1.0 / (size + 1)}
    ood = {"flag": True, "detectors": dict.fromkeys(scores, unknown)}
    return _refused(not_finite(), request_id) | {
        "reasons": judgement.reasons,
        "ood": _ood(model, judgement, options) | unknown | ood,
        "members_used": len(judgement.evidence.logits),
        "input": info,
    }


def _answered(
    model: Model, judgement: Judgement, options: Options, info: Mapping[str, Any]
) -> Json:
    evidence, ranking, inside = judgement.evidence, judgement.ranking, judgement.inside
    labels = model.manifest.labels
    shown = range(len(labels)) if options.top_k is None else ranking[: options.top_k]
    result: Json = {
        "decision": decision(judgement.reasons),
        "reasons": judgement.reasons,
        "label": labels[ranking[0]],
        "probabilities": _named(labels, evidence.probabilities.tolist(), shown),
        "uncertainty": _uncertainty(model, evidence),
        "ood": _ood(model, judgement, options),
        "prediction_set": inside and [labels[index] for index in ranking if inside[index]],
        "members_used": len(evidence.logits),
        "input": info,
        "error": None,
    }
    if options.explain:
        members = evidence.member_probabilities().tolist()
        result["members"] = [_named(labels, each, shown) for each in members]
    return result


def _named(labels: Sequence[str], values: Sequence[float], shown: Sequence[int]) -> Json:
    return {labels[index]: values[index] for index in shown}


def _uncertainty(model: Model, evidence: Evidence) -> Json:
    maximum = model.manifest.maximum_entropy
    predictive, expected, mutual = evidence.entropies
    return {
        "predictive_entropy": predictive,
        "expected_entropy": expected,
        "mutual_information": mutual,
        "unit": "nat",
        "maximum": maximum,
        "share": {
            "predictive_entropy": min(1.0, predictive / maximum),
            "expected_entropy": min(1.0, expected / maximum),
            "mutual_information": min(1.0, mutual / maximum),
        },
    }


def _ood(model: Model, judgement: Judgement, options: Options) -> Json:
    look, detector = judgement.evidence.look, options.detector
    p_values = look.p_values
    return {
        "flag": "ood" in judgement.reasons,
        "p_value": judgement.p_value,
        "alpha": options.policy.alpha if options.fdr is None else None,
        "fdr": options.fdr,
        "level": judgement.level,
        "score": look.scores[detector],
        "detector": detector,
        "members_used": model.manifest.members.group,
        "detectors": {
            name: {"score": score, "p_value": p_values[name]} for name, score in look.scores.items()
        },
    }


def error_of(case: Case | GateError) -> GateError | None:
    """Why a settled case is no image, if it is none."""
    known = case.image if isinstance(case, Case) else case
    return known if isinstance(known, GateError) else None


def not_finite() -> InferenceError:
    """Why there is no answer to an image whose evidence is not finite."""
    return InferenceError("the model gave numbers that are not finite on this image")


def encode(content: Json) -> bytes:
    """Compact JSON in UTF-8."""
    try:
        return orjson.dumps(content)
    except TypeError:  # text of a client's that is no Unicode, such as half of a surrogate pair
        return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
