"""Evidence → the answer's JSON, one result an image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.manifest import CertificateSpec
from models.policy import Policy, decision, reasons_to_abstain
from service.errors import GateError, InferenceError, InvalidError
from service.evidence import Evidence
from service.intake import Prepared
from service.repository import Model

PROBLEM_TYPE = "urn:problem-type:langevin-gate:"
ASSUMPTION = "Images are drawn independently from the same source as the calibration images."
ENTROPIES = ("predictive_entropy", "expected_entropy", "mutual_information")

Json = dict[str, Any]

_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Options:
    """What one request asks for.

    Attributes:
        policy_name: the policy's name.
        policy: its levels, `alpha` as the request has it.
        explain: add the probabilities of each member.
        top_k: tell this many classes, the most probable first; None tells all, in label order.
    """

    policy_name: str
    policy: Policy
    explain: bool = False
    top_k: int | None = None


def choose_options(
    model: Model,
    policy: str,
    alpha: float | None = None,
    explain: bool = False,
    top_k: int | None = None,
) -> Options:
    """Check a request's options against the model.

    Raises:
        InvalidError: there is no such policy, or there are fewer than `top_k` classes.
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
        levels = levels.model_copy(update={"alpha": alpha})
    return Options(policy, levels, explain, top_k)


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
        "runtime": model.runtime.name,
        "device": model.runtime.device,
    }


def certificate(model: Model, options: Options) -> Json | None:
    """What was proved of the levels in use; None if nothing was, or the request changed them."""
    proved = model.manifest.certificates.get(options.policy_name)
    return _promise(proved) if proved and proved.policy == options.policy else None


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
    model: Model,
    images: Sequence[Prepared | GateError],
    evidence: Sequence[Evidence],
    options: Options,
    request_id: str,
) -> list[Json]:
    """One result an image, in order.

    Args:
        model: who answers.
        images: every image of the request, or why it is none.
        evidence: on the images that are, in the same order.
        options: what the request asks for.
        request_id: for the problem objects.
    """
    answers = iter(zip(evidence, _reasons(model, evidence, options), strict=True))
    return [
        _refused(image, request_id)
        if isinstance(image, GateError)
        else _answered(model, image, *next(answers), options, request_id)
        for image in images
    ]


def _reasons(model: Model, evidence: Sequence[Evidence], options: Options) -> list[tuple[Any, ...]]:
    if not evidence:
        return []
    detector = options.policy.score or model.manifest.calibration.score
    probabilities = np.stack([each.probabilities for each in evidence])
    p_values = np.array([each.p_values[detector] for each in evidence])
    reasons = reasons_to_abstain(options.policy, probabilities, p_values)
    return [
        why if each.finite else ("uncertain",) for each, why in zip(evidence, reasons, strict=True)
    ]


def _refused(error: GateError, request_id: str) -> Json:
    return {
        "decision": "abstain",
        "reasons": ["input"],
        "label": None,
        "probabilities": None,
        "uncertainty": None,
        "ood": None,
        "members_used": 0,
        "input": None,
        "error": problem(error, request_id),
    }


def _answered(
    model: Model,
    image: Prepared,
    evidence: Evidence,
    reasons: tuple[Any, ...],
    options: Options,
    request_id: str,
) -> Json:
    result: Json = {
        "decision": decision(reasons),
        "reasons": list(reasons),
        "label": None,
        "probabilities": None,
        "uncertainty": None,
        "ood": _ood(model, evidence, reasons, options),
        "members_used": model.runtime.members,
        "input": image.info,
        "error": None,
    }
    if not evidence.finite:
        error = InferenceError("the model gave numbers that are not finite on this image")
        return result | {"error": problem(error, request_id)}
    labels = model.manifest.labels
    values = evidence.probabilities.tolist()
    order = sorted(range(len(labels)), key=values.__getitem__, reverse=True)
    shown = range(len(labels)) if options.top_k is None else order[: options.top_k]
    result["label"] = labels[order[0]]
    result["probabilities"] = {labels[index]: values[index] for index in shown}
    result["uncertainty"] = _uncertainty(model, evidence)
    if options.explain:
        members = evidence.member_probabilities().tolist()
        result["members"] = [{labels[index]: each[index] for index in shown} for each in members]
    return result


def _uncertainty(model: Model, evidence: Evidence) -> Json:
    maximum = model.manifest.maximum_entropy
    content: Json = dict(zip(ENTROPIES, evidence.entropies, strict=True))
    share = {name: min(1.0, value / maximum) for name, value in content.items()}
    return content | {"unit": "nat", "maximum": maximum, "share": share}


def _ood(model: Model, evidence: Evidence, reasons: tuple[Any, ...], options: Options) -> Json:
    detector = options.policy.score or model.manifest.calibration.score
    content: Json = {
        "flag": "ood" in reasons,
        "p_value": evidence.p_values[detector],
        "alpha": options.policy.alpha,
        "score": evidence.scores[detector],
        "detector": detector,
        "detectors": {
            name: {"score": score, "p_value": evidence.p_values[name]}
            for name, score in evidence.scores.items()
        },
    }
    if evidence.finite:
        return content
    least = 1.0 / (model.bundle.tests[detector].size + 1)
    unknown = {"score": None, "p_value": least}
    return content | unknown | {"flag": True, "detectors": dict.fromkeys(evidence.scores, unknown)}


def encode(content: Json) -> bytes:
    """Compact JSON in UTF-8.

    Raises:
        ValueError: a number is not finite.
    """
    return _ENCODER.encode(content).encode("utf-8", "replace")
