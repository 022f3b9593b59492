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
from models.fusion import Surprise
from models.uncertainty import summarise
from service.evidence import weigh

RANDOMNESS = np.random.default_rng(9)
CLASSES = np.arange(100) % 5
DETECT = Detectors(
    ClassGaussians.fit(RANDOMNESS.normal(size=(100, 20)), CLASSES, 5),
    ClassSubspaces.fit(RANDOMNESS.normal(size=(100, 196)), CLASSES, 5, rank=3),
    {name: Surprise.fit(RANDOMNESS.exponential(size=50)) for name in ("max_logit", "shape")},
)
TESTS = {name: ConformalTest.fit(np.linspace(0, 1, 99)) for name in DETECTORS}
PIXELS = RANDOMNESS.random((6, 9, 8), dtype=np.float32)


def test_it_says_what_the_shared_functions_say():
    logits = np.random.default_rng(0).normal(0, 3, (6, 4, 5)).astype(np.float32)
    prediction = summarise(logits)
    scores = DETECT.scores(prediction, PIXELS)
    for index, evidence in enumerate(weigh(logits, PIXELS, DETECT, TESTS)):
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
    logits = np.random.default_rng(1).normal(0, 3, (6, 4, 5)).astype(np.float32)
    together = weigh(logits, PIXELS, DETECT, TESTS)
    for index, evidence in enumerate(together):
        (alone,) = weigh(logits[index, None], PIXELS[index, None], DETECT, TESTS)
        assert alone.probabilities.tolist() == evidence.probabilities.tolist()
        assert alone.p_values == evidence.p_values


@given(arrays(np.float32, (3, 2, 4), elements=st.floats(width=32)))
def test_nothing_that_is_not_a_number_gets_out(logits):
    for row, evidence in zip(logits, weigh(logits, PIXELS[:3], DETECT, TESTS), strict=True):
        assert evidence.finite == bool(np.isfinite(row).all())
        assert np.isfinite(evidence.probabilities).all()
        assert evidence.probabilities.sum() == pytest.approx(1)
        json.dumps([evidence.entropies, evidence.scores, evidence.p_values], allow_nan=False)
