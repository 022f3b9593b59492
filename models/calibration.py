"""Conformal tests of a bundle, and which of them a policy asks for.

A policy flags an image at p ≤ level, and promises of familiar images P(flagged) ≤ α

- on average over calibration sets and classes: p over all calibration images, level α;
- for the calibration set at hand, with confidence `alpha_confidence`: level `conditional_level`;
- within each predicted class (`conditional_on`): p within the class, level α.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.conformal import (
    CalibrationError,
    ClassConditionalTest,
    ConformalTest,
    conditional_level,
)
from models.policy import Policy
from models.uncertainty import Array


@dataclass(frozen=True)
class Calibration:
    """Conformal tests of every detector, all of the same n images.

    Attributes:
        score: the detector that raises the flag where a policy names none.
        tests: over all images, by detector.
        class_tests: within each predicted class, by detector; none if the classes are not known.
    """

    score: str
    tests: Mapping[str, ConformalTest]
    class_tests: Mapping[str, ClassConditionalTest]

    @classmethod
    def fit(
        cls, score: str, scores: Mapping[str, Array], classes: NDArray[np.integer] | None
    ) -> Calibration:
        """From the scores [n] of each detector and the classes [n] that the first group predicts.

        Raises:
            CalibrationError: there are none, one is not finite, or scores and classes differ in
                number.
        """
        tests, class_tests = {}, {}
        for name, values in scores.items():
            try:
                tests[name] = ConformalTest.fit(values)
                if classes is not None:
                    class_tests[name] = ClassConditionalTest.fit(values, classes)
            except CalibrationError as error:
                raise CalibrationError(f"{name}: {error}") from error
        return cls(score, tests, class_tests)

    @property
    def size(self) -> int:
        """n, the number of calibration images."""
        return self.tests[self.score].size

    def detector(self, policy: Policy) -> str:
        """The detector that raises the flag of a policy."""
        return policy.score or self.score

    def p_values(self, policy: Policy, scores: Array, classes: NDArray[np.integer]) -> Array:
        """What a policy compares with its level, [B].

        Args:
            policy: the policy.
            scores: of its detector, [B].
            classes: that the first group of members predicts, [B].
        """
        name = self.detector(policy)
        if policy.conditional_on == "class":
            return self.class_tests[name].p_values(scores, classes)
        return self.tests[name].p_values(scores)

    def level(self, policy: Policy) -> float:
        """The level at which a policy's flag is raised; 0 where `check` would refuse it."""
        if policy.alpha_confidence is None:
            return policy.alpha
        return conditional_level(policy.alpha, self.size, policy.alpha_confidence)

    def check(self, policies: Mapping[str, Policy], labels: Sequence[str]) -> None:
        """Refuse policies that need more calibration images than there are.

        Args:
            policies: by name.
            labels: of the K classes.

        Raises:
            CalibrationError: a policy asks for a confidence that no level has, or could never flag
                the images of a class; the message says how many images it needs.
        """
        for name, policy in policies.items():
            if self.level(policy) == 0:
                raise CalibrationError(
                    f"policy {name!r}: {_images(self.size)} do not keep alpha {policy.alpha:g} "
                    f"with confidence {policy.alpha_confidence:g}: {_needed(policy):,} are needed"
                )
            if policy.conditional_on is None:
                continue
            tests = self.class_tests[self.detector(policy)].tests
            for index, label in enumerate(labels):
                size = tests[index].size if index in tests else 0
                if 1 / (size + 1) > policy.alpha:
                    raise CalibrationError(
                        f"policy {name!r}: {_images(size)} of class {label!r} do not keep alpha "
                        f"{policy.alpha:g} within it: {_needed(policy):,} are needed"
                    )


def _images(size: int) -> str:
    return f"{size:,} calibration images"


def _needed(policy: Policy) -> int:
    """The least n with which a policy can flag an image at all."""
    if policy.alpha_confidence is None:
        return math.ceil(round(1 / policy.alpha - 1, 9))
    return math.ceil(math.log1p(-policy.alpha_confidence) / math.log1p(-policy.alpha))
