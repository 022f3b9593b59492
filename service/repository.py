"""From a bundle on disk to a model that answers: verified, self-tested and warm."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models import bundle as bundles
from models.bundle import Bundle, BundleError
from models.detectors import DETECTORS
from models.manifest import Manifest
from models.preprocessing import prepare
from models.uncertainty import summarise
from service.cases import Case, Rule, Stepper
from service.errors import EngineError, ModelError
from service.evidence import Floats
from service.intake import Prepared
from service.runtime import Runtime, choose, everything
from service.settings import Settings

TOLERANCE = 1e-3

log = logging.getLogger("service.repository")


@dataclass(frozen=True, eq=False)
class Model:
    """A bundle and the runtime that evaluates it."""

    bundle: Bundle
    runtime: Runtime

    @cached_property
    def stepper(self) -> Stepper:
        """What takes images through its members."""
        return Stepper(self.bundle, self.runtime)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest


def open_model(settings: Settings) -> Model:
    """Load, verify, self-test and warm up the bundle that the settings name.

    Raises:
        ModelError: the bundle is damaged, unverified, fails its self-test or lacks the policy.
        EngineError: the runtime or device asked for is not there.
    """
    try:
        bundle = bundles.load(settings.bundle)
    except BundleError as error:
        raise ModelError(str(error)) from error
    manifest = bundle.manifest
    if settings.policy not in manifest.policies:
        known = ", ".join(manifest.policies)
        raise ModelError(f"{bundle.path}: no policy {settings.policy!r}; it has {known}")
    if not manifest.verdict.verified:
        failed = ", ".join(manifest.verdict.failed) or "none was made"
        if not settings.allow_unverified:
            raise ModelError(
                f"{bundle.path}: unverified, its sampler checks did not pass ({failed}); "
                "--allow-unverified serves it all the same"
            )
        log.warning("serving an unverified bundle: sampler checks failed: %s", failed)
    model = Model(bundle, choose(bundle, settings))
    self_test(model)
    _warm_up(model, settings.max_batch_images)
    return model


def self_test(model: Model) -> float:
    """Answer the bundle's golden images, alone and in one batch.

    Returns:
        The largest difference of a logit or feature from the expected one, relative where that
        exceeds 1.

    Raises:
        ModelError: a difference exceeds 1e-3, or another label is the most probable.
        EngineError: the runtime raised.
    """
    golden, where = model.bundle.golden, f"{model.bundle.path / bundles.GOLDEN}: self-test:"
    images, _ = prepare(golden.images, model.manifest.input)
    try:
        together = everything(model.runtime, images)
        alone = everything(model.runtime, images[:1])
    except Exception as error:
        raise EngineError(f"{where} {model.runtime.name} failed: {error}") from error
    differences = []
    for name, expected, actual, first in (
        ("logits", golden.logits, together.logits, alone.logits),
        ("features", golden.features, together.features, alone.features),
    ):
        if actual.shape != expected.shape:
            raise ModelError(f"{where} {name} {actual.shape}, expected {expected.shape}")
        difference = np.maximum(_difference(actual, expected), _difference(first, expected[:1]))
        if not difference <= TOLERANCE:
            raise ModelError(f"{where} {name} differ by {difference:.2g}, allowed is {TOLERANCE:g}")
        differences.append(float(difference))
    labels = summarise(together.logits).probabilities.argmax(axis=1)
    known = summarise(golden.logits).probabilities.argmax(axis=1)
    if (labels != known).any():
        image = int(np.argmax(labels != known))
        raise ModelError(f"{where} image {image} has another most probable label")
    return max(differences)


def _difference(actual: Floats, expected: Floats) -> float:
    """Largest |actual − expected| / max(1, |expected|); not a number if one is none."""
    return float((np.abs(actual - expected) / np.maximum(1, np.abs(expected))).max())


def _warm_up(model: Model, largest: int) -> None:
    rule = Rule(model.manifest.policies["default"].asking("all"), None, frozenset(DETECTORS))
    blank = np.zeros((1, *model.manifest.input.shape), dtype=np.float32)
    for size in (1, largest):
        model.stepper.run([Case(Prepared(blank, {}), rule) for _ in range(size)])
