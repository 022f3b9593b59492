"""Images on their way through the members: what they are settled as depends on them alone."""

from __future__ import annotations

import copy
from bisect import bisect
from collections.abc import Callable
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.detectors import DETECTORS
from models.outputs import Outputs
from models.policy import Policy, reasons_to_abstain
from models.preprocessing import grey, prepare
from models.settling import serve, stops
from models.uncertainty import softmax, summarise
from service.cases import Case, Rule, Stepper
from service.intake import Prepared
from service.repository import Model
from tests.service import tiny
from tests.service.conftest import FunctionRuntime

COUNT = 16
IMAGES = prepare(tiny.random_images(COUNT, 5), tiny.SPEC)[0]
PIXELS, FEATURES = grey(IMAGES, tiny.SPEC), tiny.features_of(IMAGES)
ALARMING, CALM = 0.999999, 1e-9
"""Levels at which every image is flagged, and none."""
ALL = frozenset(DETECTORS)


def table(logits: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The function that gives the images these logits [COUNT, M, K], one row an image."""
    rows = {image.tobytes(): row for image, row in zip(IMAGES, logits, strict=True)}
    return lambda images: np.stack([rows[image.tobytes()] for image in images])


def random_logits(seed: int) -> np.ndarray:
    """Of images on which the members agree more or less, and are more or less sure."""
    rng = np.random.default_rng(seed)
    sure, apart = 10 ** rng.uniform(-1, 1, (2, COUNT, 1, 1))
    shared = sure * rng.normal(size=(COUNT, 1, tiny.K))
    own = apart * rng.normal(size=(COUNT, tiny.M, tiny.K))
    return (shared + own).astype(np.float32)


@pytest.fixture(scope="module")
def stepper(model):
    """Make a stepper of the tiny bundle whose members say given logits."""

    def make(logits: np.ndarray, **changes: int) -> Stepper:
        return Stepper(model.bundle, FunctionRuntime(table(logits), **changes))

    return make


def cases_of(rule: Rule) -> list[Case]:
    return [Case(Prepared(image[None], {}), rule) for image in IMAGES]


def run(stepper: Stepper, rule: Rule) -> list[Case]:
    """Take the images to their end together."""
    cases = cases_of(rule)
    stepper.run(cases)
    return cases


def random_steps(stepper: Stepper, cases: list[Case], draw: Random) -> None:
    """Take some of those at some stage a step further, in some order, until all are settled."""
    while waiting := [case for case in cases if not case.settled]:
        stage = draw.choice([case.stage for case in waiting])
        peers = [case for case in waiting if case.stage == stage]
        stepper.step(draw.sample(peers, draw.randint(1, len(peers))))


def content(case: Case) -> tuple[object, ...]:
    """All that is known of a settled image, to the bit."""
    evidence, judged = case.known, case.judgement
    first = evidence.look
    arrays = (evidence.logits, evidence.probabilities, first.probabilities)
    bits = tuple((each.shape, each.tobytes()) for each in arrays)
    told = (evidence.entropies, first.scores, first.p_values)
    verdict = judged and (judged.reasons, judged.p_value, judged.level, judged.ranking)
    inside = judged and judged.inside
    return evidence.finite, first.finite, bits, told, case.stage, verdict, inside


def contents(cases: list[Case]) -> list[tuple[object, ...]]:
    return [content(case) for case in cases]


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    members = draw(st.sampled_from(["all", "exact", "confident"]))
    threshold = draw(st.floats(0, 0.95))
    sure = st.lists(st.floats(max(threshold, 0.01), 0.999), min_size=1, max_size=3).map(tuple)
    settled_at = draw(sure) if members == "confident" else None
    kept = draw(st.sampled_from([{}, {"alpha_confidence": 0.9}, {"conditional_on": "class"}]))
    return Policy(
        alpha=draw(st.sampled_from([0.1, 0.3, 0.5])),
        min_probability=threshold,
        score=draw(st.sampled_from([None, "mutual_information", "feature_subspaces", "fused"])),
        members=members,
        settled_at=settled_at,
        **kept,
    )


SEEDS = st.integers(0, 2**32 - 1)


def rule_of(model: Model, policy: Policy, level: float | None) -> Rule:
    """A rule that asks no more detectors than it must."""
    needed = model.bundle.detectors.needed(model.bundle.calibration.detector(policy))
    return Rule(policy, level, needed)


@given(policies(), SEEDS)
def test_the_service_decides_as_the_replay_of_calibration(model, stepper, policy, seed):
    """`models.settling.serve` on the sums of all members' probabilities, known in advance."""
    bundle, logits = model.bundle, random_logits(seed)
    calibration, level = bundle.calibration, bundle.calibration.level(policy)
    first = summarise(logits[:, : tiny.GROUP])
    scores = bundle.detectors.scores(first, FEATURES, PIXELS)[calibration.detector(policy)]
    p_values = calibration.p_values(policy, scores, first.probabilities.argmax(axis=1))
    flagged = p_values <= level
    totals = softmax(logits).cumsum(axis=1)[:, tiny.GROUP - 1 :: tiny.GROUP]
    served = serve(policy, totals, tiny.GROUP, flagged)

    cases = run(stepper(logits), rule_of(model, policy, level))
    evidence, judged = [case.known for case in cases], [case.judgement for case in cases]
    assert [len(each.logits) for each in evidence] == served.members.tolist()
    assert [each.p_value for each in judged] == p_values.tolist()
    assert {each.level for each in judged} == {level}
    assert [each.reasons for each in judged] == reasons_to_abstain(
        policy, served.probabilities, p_values, level
    )
    for each, expected in zip(evidence, served.probabilities, strict=True):
        assert each.probabilities == pytest.approx(expected, abs=1e-12)
        assert each.probabilities.argmax() == expected.argmax()

    everyone = totals[:, -1] / tiny.M
    if policy.members != "confident":
        of_all = reasons_to_abstain(policy, everyone, p_values, level)
        assert [not each.reasons for each in judged] == [not reasons for reasons in of_all]
        labels = np.array([each.probabilities.argmax() for each in evidence])
        assert (labels == everyone.argmax(axis=1))[~flagged].all()


def test_the_modes_differ_in_how_many_members_they_ask(stepper):
    """Or the replay would test nothing."""
    logits = random_logits(0)
    policy = Policy(alpha=0.1, min_probability=0.6)
    modes = {"all": None, "exact": None, "confident": (0.9,)}
    asked = {}
    for members, settled_at in modes.items():
        changed = policy.model_copy(update={"members": members, "settled_at": settled_at})
        asked[members] = {
            len(case.known.logits) for case in run(stepper(logits), Rule(changed, CALM, ALL))
        }
    assert asked == {"all": {10}, "exact": {8, 10}, "confident": {2, 8, 10}}


@settings(max_examples=40)
@given(policies(), SEEDS, st.randoms(use_true_random=False))
def test_evidence_is_the_same_to_the_bit_in_whatever_steps(model, stepper, policy, seed, draw):
    engine, rule = stepper(random_logits(seed)), rule_of(model, policy, policy.alpha)
    cases = cases_of(rule)
    random_steps(engine, cases, draw)
    assert contents(cases) == contents(run(engine, rule))


@settings(max_examples=40)
@given(policies(), st.randoms(use_true_random=False))
def test_evidence_of_an_engine_is_the_same_to_the_bit_in_whatever_steps(model, policy, draw):
    rule = rule_of(model, policy, policy.alpha)
    cases = cases_of(rule)
    random_steps(model.stepper, cases, draw)
    assert contents(cases) == contents(run(model.stepper, rule))


@settings(max_examples=40)
@given(st.lists(policies(), min_size=2, max_size=4), SEEDS, st.randoms(use_true_random=False))
def test_rules_that_share_steps_do_not_leak(model, stepper, several, seed, draw):
    """Every image has the policy, level or none, and the detectors of its own request."""
    engine = stepper(random_logits(seed))
    rules = [rule_of(model, each, draw.choice([ALARMING, CALM, 0.3, None])) for each in several]
    rules.append(replace(rules[0], detectors=ALL))
    mixed = [cases_of(rule) for rule in rules]
    random_steps(engine, [case for cases in mixed for case in cases], draw)
    for rule, cases in zip(rules, mixed, strict=True):
        assert contents(cases) == contents(run(engine, rule))
        assert {frozenset(case.known.look.scores) for case in cases} == {rule.detectors}


@settings(max_examples=40)
@given(policies(), SEEDS, st.sampled_from([ALARMING, CALM, 0.3, None]))
def test_an_image_of_which_all_detectors_are_asked_is_the_same(model, stepper, policy, seed, level):
    """Those that are not needed change nothing but themselves."""
    engine, rule = stepper(random_logits(seed)), rule_of(model, policy, level)
    for case, explained in zip(
        run(engine, rule), run(engine, replace(rule, detectors=ALL)), strict=True
    ):
        look, whole = case.known.look, explained.known.look
        assert set(whole.scores) == set(whole.p_values) == set(DETECTORS)
        assert look.scores == {name: whole.scores[name] for name in rule.detectors}
        assert look.p_values == {name: whole.p_values[name] for name in rule.detectors}
        explained.evidence = explained.known._replace(look=look)
        assert whole.probabilities.tobytes() == look.probabilities.tobytes()
        assert content(explained) == content(case)


LEVELS = {
    "all": Policy(alpha=0.1, min_probability=0.8),
    "exact": Policy(alpha=0.1, min_probability=0.8, members="exact"),
    "confident": Policy(alpha=0.1, min_probability=0.8, members="confident", settled_at=0.999999),
}


def undecided() -> np.ndarray:
    """Logits that give the label .91: accepted, but settled by all members alone."""
    logits = np.zeros((COUNT, tiny.M, tiny.K), np.float32)
    logits[:, :, 0] = 3.0
    return logits


@pytest.mark.parametrize(
    ("members", "level", "stages"),
    [
        ("all", ALARMING, 1),
        ("exact", ALARMING, 1),
        ("confident", ALARMING, 1),
        ("exact", CALM, 3),
        ("confident", CALM, 3),
        ("exact", None, 3),
        ("confident", None, 3),
    ],
)
def test_flagged_images_leave_after_the_first_step(stepper, members, level, stages):
    """But not if the flag needs the whole request (fdr); and all members are asked in one step."""
    cases = cases_of(Rule(LEVELS[members], level, ALL))
    engine = stepper(undecided())
    for stage in range(3):
        waiting = [case for case in cases if not case.settled]
        assert len(waiting) == (COUNT if stage < stages else 0)
        if waiting:
            engine.step(waiting)
    assert {case.stage for case in cases} == {stages}
    asked = {len(case.known.logits) for case in cases}
    assert asked == {tiny.GROUP if level == ALARMING and members != "all" else tiny.M}


@pytest.mark.parametrize("member", range(tiny.M))
@pytest.mark.parametrize("members", LEVELS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_ends_the_image_and_no_other(stepper, members, member, value):
    logits = np.zeros((COUNT, tiny.M, tiny.K), np.float32)
    logits[:, :, 0] = np.linspace(2, 3, COUNT)[:, None]
    rule = Rule(LEVELS[members], CALM, ALL)
    expected = contents(run(stepper(logits), rule))
    logits[3, member, 1] = value
    cases = cases_of(rule)
    random_steps(stepper(logits), cases, Random(member))
    lost = cases.pop(3)
    assert not lost.known.finite
    assert lost.judgement.reasons == ("uncertain",)
    assert lost.stage == bisect(stops(LEVELS[members], tiny.GROUP, tiny.M), member) + 1
    assert np.isfinite(lost.known.probabilities).all()
    assert contents(cases) == expected[:3] + expected[4:]


@pytest.mark.parametrize("level", [CALM, None])
@pytest.mark.parametrize("members", LEVELS)
def test_features_that_are_not_finite_end_the_image(model, members, level):
    class Broken(FunctionRuntime):
        def evaluate(self, seen: int, until: int, images: np.ndarray) -> Outputs:
            outputs = super().evaluate(seen, until, images)
            features = outputs.features.copy()
            features[2 % len(images), 1, 5] = np.nan
            return replace(outputs, features=features)

    rule, logits = Rule(LEVELS[members], level, ALL), random_logits(2)
    broken = run(Stepper(model.bundle, Broken(table(logits))), rule)
    whole = run(Stepper(model.bundle, FunctionRuntime(table(logits))), rule)
    assert not broken[2].known.finite
    assert len(broken[2].known.logits) == (tiny.M if members == "all" else tiny.GROUP)
    for index in set(range(COUNT)) - {2}:
        assert content(broken[index]) == content(whole[index])


@pytest.mark.parametrize(
    ("failing", "fault"),
    [(stage, fault) for stage in range(3) for fault in ("raises", "images")]
    + [(0, "features"), (1, "classes"), (2, "classes")],
)
def test_a_step_that_raises_changes_no_image(model, failing, fault):
    """Be it the engine, or what is made of its outputs."""
    rule, healthy = Rule(LEVELS["exact"], CALM, ALL), FunctionRuntime(table(undecided()))
    whole = Stepper(model.bundle, healthy)

    class Broken(FunctionRuntime):
        def evaluate(self, seen: int, until: int, images: np.ndarray) -> Outputs:
            if fault == "raises":
                raise RuntimeError("out of memory")
            outputs = super().evaluate(seen, until, images)
            wrong = {
                "classes": {"logits": outputs.logits[:, :, :2]},
                "images": {"logits": outputs.logits[:-1]},
                "features": {"features": outputs.features[:, :, :-1]},
            }
            return replace(outputs, **wrong[fault])

    cases = cases_of(rule)
    for _ in range(failing):
        whole.step(cases)
    before = [copy.deepcopy(case) for case in cases]
    with pytest.raises((RuntimeError, ValueError)):
        Stepper(model.bundle, Broken(healthy.function)).step(cases)
    for case, kept in zip(cases, before, strict=True):
        assert (case.stage, case.settled) == (failing, False)
        assert [each.tobytes() for each in case.logits] == [each.tobytes() for each in kept.logits]
        assert np.array_equal(case.total, kept.total)
        assert case.look.scores == kept.look.scores
    while not cases[0].settled:
        whole.step(cases)
    assert contents(cases) == contents(run(whole, rule))


@given(policies(), SEEDS)
def test_an_engine_that_asks_all_at_once_flags_alike(stepper, policy, seed):
    """A GPU has room for all members; the first look is still at the first group."""
    logits, rule = random_logits(seed), Rule(policy, policy.alpha, ALL)
    at_once = run(stepper(logits, group=tiny.M), rule)
    everyone = summarise(logits)
    for index, (case, by_groups) in enumerate(
        zip(at_once, run(stepper(logits), rule), strict=True)
    ):
        one, other = case.known, by_groups.known
        assert len(one.logits) == tiny.M
        assert one.probabilities.tolist() == everyone.probabilities[index].tolist()
        assert one.look.scores == other.look.scores
        assert one.look.p_values == other.look.p_values
        assert one.look.probabilities.tolist() == other.look.probabilities.tolist()
