from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.conformal import ConformalTest
from models.density import ClassGaussians, ClassSubspaces
from models.detectors import DETECTORS, Detectors
from models.features import FeatureNeighbours, FeatureSubspaces, RelativeMahalanobis
from models.fusion import Surprise
from models.outputs import Outputs
from models.uncertainty import summarise
from service.evidence import conclude, look

RANDOMNESS = np.random.default_rng(9)
CLASSES = np.arange(100) % 5
KNOWN = RANDOMNESS.normal(size=(100, 2, 6)).astype(np.float32)
DETECT = Detectors(
    ClassGaussians.fit(RANDOMNESS.normal(size=(100, 20)), CLASSES, 5),
    ClassSubspaces.fit(RANDOMNESS.normal(size=(100, 196)), CLASSES, 5, rank=3),
    FeatureSubspaces.fit(KNOWN, CLASSES, 5, rank=3),
    FeatureNeighbours.fit(KNOWN, CLASSES, 5),
    RelativeMahalanobis.fit(KNOWN, CLASSES, 5),
    {name: Surprise.fit(RANDOMNESS.exponential(size=50)) for name in ("max_logit", "shape")},
)
NEARLY = st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([np.nan, np.inf, -np.inf])
"""Features that are none, or as a network may have them: their sums do not overflow."""
TESTS = {name: ConformalTest.fit(np.linspace(0, 1, 99)) for name in DETECTORS}
PIXELS = RANDOMNESS.random((6, 9, 8), dtype=np.float32)
FEATURES = RANDOMNESS.normal(size=(6, 2, 6)).astype(np.float32)


def member_logits(seed):
    """Of six images and six members; the first two are the first group."""
    return np.random.default_rng(seed).normal(0, 3, (6, 6, 5)).astype(np.float32)


def first_group(logits):
    return Outputs(logits[:, :2], FEATURES)


def test_the_first_look_says_what_the_shared_functions_say_of_the_first_group():
    given = first_group(member_logits(0))
    prediction = summarise(given.logits)
    scores = DETECT.scores(prediction, FEATURES, PIXELS)
    for index, first in enumerate(look(given, PIXELS, DETECT, TESTS)):
        assert first.finite
        assert first.probabilities.tolist() == prediction.probabilities[index].tolist()
        assert set(first.scores) == set(first.p_values) == set(DETECTORS)
        for name in DETECTORS:
            score = scores[name][index]
            assert first.scores[name] == score
            assert first.p_values[name] == TESTS[name].p_values(score[None])[0]


@pytest.mark.parametrize("asked", [2, 4, 6])
def test_evidence_says_what_the_shared_functions_say_of_the_members_asked(asked):
    logits = member_logits(0)
    looks = look(first_group(logits), PIXELS, DETECT, TESTS)
    prediction = summarise(logits[:, :asked])
    for index, evidence in enumerate(conclude(logits[:, :asked], looks)):
        assert evidence.finite
        assert evidence.look is looks[index]
        assert evidence.logits.tolist() == logits[index, :asked].tolist()
        assert evidence.probabilities.tolist() == prediction.probabilities[index].tolist()
        assert evidence.entropies == (
            prediction.predictive_entropy[index],
            prediction.expected_entropy[index],
            prediction.mutual_information[index],
        )
        members = evidence.member_probabilities()
        assert len(members) == asked
        assert members.mean(axis=0) == pytest.approx(evidence.probabilities)


def test_an_image_is_judged_alike_alone_and_in_a_batch():
    logits = member_logits(1)
    looks = look(first_group(logits), PIXELS, DETECT, TESTS)
    together = conclude(logits, looks)
    for index, evidence in enumerate(together):
        own = Outputs(logits[index, None, :2], FEATURES[index, None])
        alone = look(own, PIXELS[index, None], DETECT, TESTS)
        assert alone[0].probabilities.tolist() == looks[index].probabilities.tolist()
        assert alone[0].scores == looks[index].scores
        assert alone[0].p_values == looks[index].p_values
        (concluded,) = conclude(logits[index, None], alone)
        assert concluded.probabilities.tolist() == evidence.probabilities.tolist()
        assert concluded.entropies == evidence.entropies


@given(
    arrays(np.float32, (3, 2, 4), elements=st.floats(width=32)),
    arrays(np.float32, (3, 2, 6), elements=NEARLY),
    arrays(np.float32, (3, 2, 4), elements=st.floats(width=32)),
)
def test_nothing_that_is_not_a_number_gets_out(logits, features, later):
    looks = look(Outputs(logits, features), PIXELS[:3], DETECT, TESTS)
    every = np.concatenate([logits, later], axis=1)
    for row, seen, first in zip(logits, features, looks, strict=True):
        assert first.finite == bool(np.isfinite(row).all() and np.isfinite(seen).all())
        assert np.isfinite(first.probabilities).all()
        assert first.probabilities.sum() == pytest.approx(1)
        json.dumps([first.scores, first.p_values], allow_nan=False)
    for row, first, evidence in zip(every, looks, conclude(every, looks), strict=True):
        assert evidence.finite == bool(first.finite and np.isfinite(row).all())
        assert np.isfinite(evidence.probabilities).all()
        assert evidence.probabilities.sum() == pytest.approx(1)
        json.dumps(evidence.entropies, allow_nan=False)
