"""One image on its way through the members, and the step that takes it further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.outputs import Outputs
from models.policy import Policy
from models.preprocessing import grey
from models.settling import settled, stops
from models.uncertainty import Array, softmax
from service.errors import GateError
from service.evidence import (
    Evidence,
    FirstLook,
    Floats,
    all_finite,
    conclude,
    conclude_first,
    look,
    p_values_of,
    zero_unless,
)
from service.intake import Opened, Prepared, prepare_opened
from service.judgement import Judgement, judge
from service.runtime import Runtime


@dataclass(frozen=True, eq=False)
class Rule:
    """What settles images, and what is to be known of them.

    Attributes:
        policy: that decides.
        level: of the flag; None if it is known only when a whole request has been looked at.
        detectors: that are asked, with those that one of them fuses.
    """

    policy: Policy
    level: float | None
    detectors: frozenset[str]


UNSEEN = FirstLook(False, np.zeros(0), (0.0, 0.0, 0.0), {}, {})


@dataclass(eq=False, slots=True)
class Case:
    """One image on its way through the members.

    Attributes:
        image: to be decoded in the first step, or prepared; or why it is none.
        rule: when it is settled.
        stage: steps that it has had.
        logits: of each step's members, [n, K].
        total: sum of their probabilities, [K].
        look: at the image by the first group, once the first step is done.
        evidence: once it is settled, if it is an image.
        judgement: with it, where the rule has a level.
    """

    image: Opened | Prepared | GateError
    rule: Rule
    stage: int = 0
    logits: list[Floats] = field(default_factory=list)
    total: Array | float = 0.0
    look: FirstLook = UNSEEN
    evidence: Evidence | None = None
    judgement: Judgement | None = None

    @property
    def settled(self) -> bool:
        """Whether it needs no further step."""
        return self.evidence is not None or isinstance(self.image, GateError)

    @property
    def tensor(self) -> Floats:
        """The prepared image, [1, C, H, W]."""
        assert isinstance(self.image, Prepared)
        return self.image.tensor

    @property
    def known(self) -> Evidence:
        """The evidence on a settled image."""
        assert self.evidence is not None
        return self.evidence


_Rules = dict[Rule, list[int]]
_State = tuple[list[Floats], Array, FirstLook, Evidence | None, Judgement | None]


@dataclass(frozen=True)
class Stepper:
    """Takes images through the members of a bundle, one step of the runtime at a time."""

    bundle: Bundle
    runtime: Runtime

    def step(self, cases: Sequence[Case]) -> None:
        """Show images that have had as many steps to their next members; all advance, or none."""
        stage = cases[0].stage
        if not stage:
            self._prepare(cases)
        images = [case for case in cases if isinstance(case.image, Prepared)]
        spans = {rule: self._span(rule, stage) for rule in {case.rule for case in images}}
        parts: dict[tuple[int, int, frozenset[str]], list[Case]] = {}
        for case in images:
            parts.setdefault((*spans[case.rule], case.rule.detectors), []).append(case)
        advanced = [self._advance(part, *span) for span, part in parts.items()]
        for part, states in zip(parts.values(), advanced, strict=True):
            for case, state in zip(part, states, strict=True):
                case.logits, case.total, case.look, case.evidence, case.judgement = state
        for case in cases:
            case.stage = stage + 1

    def run(self, cases: Sequence[Case]) -> None:
        """Take new cases to their end together."""
        while waiting := [case for case in cases if not case.settled]:
            self.step(waiting)

    def _prepare(self, cases: Sequence[Case]) -> None:
        """Decode what has not been: for a step that is tried again, once is enough."""
        new = [(case, case.image) for case in cases if isinstance(case.image, Opened)]
        prepared = prepare_opened([image for _, image in new], self.bundle.manifest.input)
        for (case, _), each in zip(new, prepared, strict=True):
            case.image = each

    def _span(self, rule: Rule, stage: int) -> tuple[int, int]:
        """How many members have been asked before step number `stage` of a rule, and after it."""
        ends = (0, *stops(rule.policy, self.runtime.group, self.runtime.members))
        return ends[stage], ends[stage + 1]

    def _advance(
        self, cases: Sequence[Case], seen: int, until: int, detectors: frozenset[str]
    ) -> list[_State]:
        """The states of images that `seen` members have judged after those up to `until` have."""
        rules = _by_rule(cases)
        images = np.concatenate([case.tensor for case in cases])
        outputs = self.runtime.evaluate(seen, until, images)
        new = outputs.logits
        looks = [case.look for case in cases]
        if not seen:
            looks = self._looks(images, outputs, detectors)
        first_only = until == self.bundle.manifest.members.group
        if until == self.runtime.members:
            totals, done = np.zeros((len(cases), 1)), np.ones(len(cases), dtype=np.bool_)
        elif first_only:
            totals = until * np.array([look.probabilities for look in looks])
            done = self._settled(rules, totals, until) | self._flagged(rules, looks)
        else:
            finite = all_finite(new)
            totals = softmax(zero_unless(finite, new)).sum(axis=1)
            totals += np.array([case.total for case in cases])
            done = self._settled(rules, totals, until) | ~finite
        logits = [[*case.logits, mine] for case, mine in zip(cases, new, strict=True)]
        chosen = np.flatnonzero(done).tolist()
        evidence: list[Evidence | None] = [None] * len(cases)
        if chosen:
            theirs = new[chosen]
            if seen:
                theirs = np.array([np.concatenate(logits[index]) for index in chosen])
            end = conclude_first if first_only else conclude
            for index, each in zip(chosen, end(theirs, [looks[i] for i in chosen]), strict=True):
                evidence[index] = each
        judgements = self._judged(rules, evidence)
        return list(zip(logits, totals, looks, evidence, judgements, strict=True))

    def _looks(
        self, images: Floats, outputs: Outputs, detectors: frozenset[str]
    ) -> list[FirstLook]:
        first = Outputs(outputs.logits[:, : self.bundle.manifest.members.group], outputs.features)
        pixels = grey(images, self.bundle.manifest.input)
        tests = self.bundle.calibration.tests
        return look(first, pixels, self.bundle.detectors, tests, detectors)

    def _settled(self, rules: _Rules, totals: Array, seen: int) -> NDArray[np.bool_]:
        """Whether `seen` members settle each image."""
        done = np.zeros(len(totals), dtype=np.bool_)
        members, group = self.runtime.members, self.runtime.group
        for rule, mine in rules.items():
            done[mine] = settled(rule.policy, totals[mine], seen, members, group)
        return done

    def _flagged(self, rules: _Rules, looks: Sequence[FirstLook]) -> NDArray[np.bool_]:
        """Whether the first group settles each image: it is flagged, or cannot be judged at all."""
        flagged = np.array([not each.finite for each in looks])
        calibration = self.bundle.calibration
        for rule, mine in rules.items():
            if rule.level is not None and rule.policy.members != "all":
                p_values = p_values_of(calibration, rule.policy, [looks[index] for index in mine])
                flagged[mine] |= p_values <= rule.level
        return flagged

    def _judged(self, rules: _Rules, evidence: Sequence[Evidence | None]) -> list[Judgement | None]:
        """What the rules make of the images that are settled, where they have a level."""
        judged: list[Judgement | None] = [None] * len(evidence)
        for rule, those in rules.items():
            mine = [(index, each) for index in those if (each := evidence[index]) is not None]
            if mine and rule.level is not None:
                numbers, theirs = zip(*mine, strict=True)
                judgements = judge(self.bundle, rule.policy, rule.level, theirs)
                for index, judgement in zip(numbers, judgements, strict=True):
                    judged[index] = judgement
        return judged


def _by_rule(cases: Sequence[Case]) -> _Rules:
    """Numbers of the images that each rule settles."""
    numbers: _Rules = {}
    for index, case in enumerate(cases):
        numbers.setdefault(case.rule, []).append(index)
    return numbers
