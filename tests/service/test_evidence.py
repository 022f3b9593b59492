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
from service.evidence import weigh

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


def outputs(seed):
    """Of six images."""
    logits = np.random.default_rng(seed).normal(0, 3, (6, 4, 5)).astype(np.float32)
    return Outputs(logits, FEATURES)


def test_it_says_what_the_shared_functions_say():
    given = outputs(0)
    prediction = summarise(given.logits)
    scores = DETECT.scores(prediction, FEATURES, PIXELS)
    for index, evidence in enumerate(weigh(given, PIXELS, DETECT, TESTS)):
        assert evidence.finite
        assert evidence.probabilities.tolist() == prediction.probabilities[index].tolist()
        assert evidence.entropies == (
            prediction.predictive_entropy[index],
            prediction.expected_entropy[index],
            prediction.mutual_information[index],
        )
        for name in DETECTORS:
            score = scores[name][index]
            assert evidence.scores[name] == score
            assert evidence.p_values[name] == TESTS[name].p_values(score[None])[0]
        assert evidence.member_probabilities().mean(axis=0) == pytest.approx(evidence.probabilities)


def test_an_image_is_judged_alike_alone_and_in_a_batch():
    given = outputs(1)
    together = weigh(given, PIXELS, DETECT, TESTS)
    for index, evidence in enumerate(together):
        own = Outputs(given.logits[index, None], FEATURES[index, None])
        (alone,) = weigh(own, PIXELS[index, None], DETECT, TESTS)
        assert alone.probabilities.tolist() == evidence.probabilities.tolist()
        assert alone.p_values == evidence.p_values


@given(
    arrays(np.float32, (3, 2, 4), elements=st.floats(width=32)),
    arrays(np.float32, (3, 2, 6), elements=NEARLY),
)
def test_nothing_that_is_not_a_number_gets_out(logits, features):
    weighed = weigh(Outputs(logits, features), PIXELS[:3], DETECT, TESTS)
    for row, seen, evidence in zip(logits, features, weighed, strict=True):
        assert evidence.finite == bool(np.isfinite(row).all() and np.isfinite(seen).all())
        assert np.isfinite(evidence.probabilities).all()
        assert evidence.probabilities.sum() == pytest.approx(1)
        json.dumps([evidence.entropies, evidence.scores, evidence.p_values], allow_nan=False)
