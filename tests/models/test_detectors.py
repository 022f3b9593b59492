from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from models.detectors import DETECTORS, scores
from models.uncertainty import summarise


def test_each_score_is_what_its_name_says() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (20, 5, 4))
    members = special.softmax(logits, axis=2)
    mean = members.mean(axis=1)
    total, expected = stats.entropy(mean, axis=1), stats.entropy(members, axis=2).mean(axis=1)
    values = scores(summarise(logits))
    assert list(values) == ["predictive_entropy", "mutual_information", "max_probability"]
    assert values["predictive_entropy"] == pytest.approx(total)
    assert values["mutual_information"] == pytest.approx(total - expected)
    assert values["max_probability"] == pytest.approx(1 - mean.max(axis=1))


@pytest.mark.parametrize("name", DETECTORS)
def test_score_rises_from_agreement_to_contradiction(name: str) -> None:
    sure = [[9.0, 0.0, 0.0]] * 3
    contradictory = [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]
    agreed, doubtful = scores(summarise(np.array([sure, contradictory])))[name]
    assert 0 <= agreed < 0.01
    assert doubtful > 0.5


@pytest.mark.parametrize("name", DETECTORS)
def test_score_of_what_is_not_a_number_is_none_either(name: str) -> None:
    values = scores(summarise(np.array([[[np.nan, 0.0]], [[1.0, 0.0]]])))[name]
    assert np.isnan(values).tolist() == [True, False]
