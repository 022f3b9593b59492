from __future__ import annotations

import math
import os
import warnings
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as oracle
from torchmetrics.classification import MulticlassCalibrationError

from training import metrics
from training.data import read_idx

Array = NDArray[np.float64]
scores = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=40).map(np.array)


@pytest.fixture(params=[(300, 10, 1.0), (50, 3, 0.2), (1000, 2, 5.0), (1, 4, 1.0)], ids=str)
def answers(request: pytest.FixtureRequest) -> tuple[Array, NDArray[np.int64]]:
    size, classes, concentration = request.param
    randomness = np.random.default_rng(size)
    probabilities = randomness.dirichlet([concentration] * classes, size)
    return probabilities, randomness.integers(0, classes, size)


def test_accuracy(answers: tuple[Array, NDArray[np.int64]]) -> None:
    probabilities, labels = answers
    assert metrics.accuracy(*answers) == oracle.accuracy_score(labels, probabilities.argmax(1))


def test_negative_log_likelihood(answers: tuple[Array, NDArray[np.int64]]) -> None:
    probabilities, labels = answers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = oracle.log_loss(labels, probabilities, labels=range(probabilities.shape[1]))
    assert metrics.negative_log_likelihood(*answers) == pytest.approx(expected, rel=1e-9)


def test_negative_log_likelihood_of_an_impossible_label_is_finite() -> None:
    value = metrics.negative_log_likelihood(np.array([[1.0, 0.0]]), np.array([1]))
    assert value == pytest.approx(-math.log(np.finfo(np.float64).tiny))


def test_brier(answers: tuple[Array, NDArray[np.int64]]) -> None:
    probabilities, labels = answers
    expected = oracle.brier_score_loss(
        labels, probabilities, labels=range(probabilities.shape[1]), scale_by_half=False
    )
    assert metrics.brier(*answers) == pytest.approx(expected, rel=1e-12)


def test_brier_of_the_best_and_the_worst_answer() -> None:
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert metrics.brier(certain, np.array([0, 1])) == 0
    assert metrics.brier(certain, np.array([1, 0])) == 2


def test_calibration_error(answers: tuple[Array, NDArray[np.int64]]) -> None:
    probabilities, labels = answers
    torchmetric = MulticlassCalibrationError(probabilities.shape[1], n_bins=15, norm="l1")
    expected = torchmetric(torch.from_numpy(probabilities), torch.from_numpy(labels)).item()
    assert metrics.calibration_error(*answers) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    """Bin of .9: half right, gap .4; bin of 1.0: all right. Weighted by images: .4 · 2/3."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [1.0, 0.0]])
    assert metrics.calibration_error(probabilities, np.array([0, 1, 0])) == pytest.approx(0.8 / 3)


@given(familiar=scores, unfamiliar=scores)
def test_auroc(familiar: Array, unfamiliar: Array) -> None:
    truth = np.repeat([0, 1], [len(familiar), len(unfamiliar)])
    expected = oracle.roc_auc_score(truth, np.concatenate([familiar, unfamiliar]))
    assert metrics.auroc(familiar, unfamiliar) == pytest.approx(expected, abs=1e-12)


def test_auroc_of_separate_scores() -> None:
    assert metrics.auroc(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1
    assert metrics.auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 0
    assert metrics.auroc(np.ones(3), np.ones(2)) == 0.5


def missed(familiar: Array, unfamiliar: Array, share: float) -> float:
    """The least threshold at which `share` of the familiar scores is accepted, by trying all."""
    threshold = min(score for score in familiar if (familiar <= score).mean() >= share)
    return float((unfamiliar <= threshold).mean())


@given(familiar=scores, unfamiliar=scores, share=st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_missed_at_accepts_at_least_the_share(
    familiar: Array, unfamiliar: Array, share: float
) -> None:
    assert metrics.missed_at(familiar, familiar, share) >= share
    assert metrics.missed_at(familiar, unfamiliar, share) >= missed(familiar, unfamiliar, share)


@pytest.mark.parametrize(
    ("size", "share"), [(20, 0.95), (100, 0.95), (100, 0.99), (10_000, 0.95), (10_000, 0.99)]
)
def test_missed_at_by_brute_force(size: int, share: float) -> None:
    """Scores one apart, so that one rank more shows."""
    familiar, unfamiliar = np.arange(float(size)), np.arange(2.0 * size)
    assert metrics.missed_at(familiar, unfamiliar, share) == missed(familiar, unfamiliar, share)


@pytest.mark.parametrize("share", [0.95, 0.99])
@pytest.mark.parametrize("kind", ["continuous", "tied"])
def test_missed_at_is_what_the_roc_curve_says(kind: str, share: float) -> None:
    """Familiar images as the positive class: the least FPR among points with TPR ≥ share."""
    print("seed 3")
    randomness = np.random.default_rng(3)
    familiar, unfamiliar = randomness.normal(0, 1, 2000), randomness.normal(2, 2, 1500)
    if kind == "tied":
        familiar, unfamiliar = familiar.round(1), unfamiliar.round(1)
    truth = np.repeat([1, 0], [len(familiar), len(unfamiliar)])
    fpr, tpr, _ = oracle.roc_curve(
        truth, -np.concatenate([familiar, unfamiliar]), drop_intermediate=False
    )
    assert metrics.missed_at(familiar, unfamiliar, share) == pytest.approx(
        fpr[tpr >= share - 1e-12].min(), abs=1e-12
    )


@given(data=st.data())
def test_selective_risks_are_the_mean_over_orders_of_equals(data: st.DataObject) -> None:
    """By brute force: the running error of every order that keeps confidence falling."""
    size = data.draw(st.integers(1, 5))
    confidence = np.array(
        data.draw(st.lists(st.sampled_from([0.6, 0.7, 0.9]), min_size=size, max_size=size))
    )
    labels = np.array(data.draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)))
    orders = [
        np.array(order)
        for order in permutations(range(size))
        if (np.diff(confidence[list(order)]) <= 0).all()
    ]
    runs = [(labels[order] != 0).cumsum() / np.arange(1, size + 1) for order in orders]
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    risks = metrics.selective_risks(probabilities, labels)
    assert risks == pytest.approx(np.mean(runs, axis=0), abs=1e-12)
    assert metrics.aurc(probabilities, labels) == pytest.approx(np.mean(runs), abs=1e-12)
    shares = np.arange(size + 1) / size
    areas = [np.trapezoid(shares * np.append(0, run), shares) for run in runs]
    assert metrics.augrc(probabilities, labels) == pytest.approx(np.mean(areas), abs=1e-12)


def test_aurc_by_hand() -> None:
    """The least sure of three is wrong: risks 0, 0, 1/3. The surest is: 1, 1/2, 1/3."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    assert metrics.aurc(probabilities, np.array([0, 0, 1])) == pytest.approx(1 / 9)
    assert metrics.aurc(probabilities, np.array([1, 0, 0])) == pytest.approx(11 / 18)


@pytest.mark.parametrize("decimals", [1, 16])
def test_augrc_is_what_the_ranking_of_failures_says(decimals: int) -> None:
    """(1 − AUROC of failures) · accuracy · error + error² / 2 (Traub et al. 2024), ties or none."""
    print("seed 4")
    randomness = np.random.default_rng(4)
    confidence = randomness.uniform(0.6, 1, 500).round(decimals)
    right = randomness.random(500) < confidence
    ranking = oracle.roc_auc_score(right, confidence)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    error = 1 - right.mean()
    expected = (1 - ranking) * (1 - error) * error + error**2 / 2
    assert metrics.augrc(probabilities, 1 - right) == pytest.approx(expected, abs=1e-12)


def test_augrc_by_hand() -> None:
    """Nothing right: 1/2. Only the surest wrong: 1/3 from 1/3 on, half of it before."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    assert metrics.augrc(probabilities, np.array([1, 1, 1])) == pytest.approx(1 / 2)
    assert metrics.augrc(probabilities, np.array([1, 0, 0])) == pytest.approx(5 / 18)
    assert metrics.augrc(probabilities, np.array([0, 0, 0])) == 0


@pytest.mark.parametrize(
    ("risk", "coverage"), [(0.0, 0.25), (0.3, 0.25), (1 / 3, 0.75), (0.49, 0.75), (0.5, 1.0)]
)
def test_coverage_at_risk_is_the_last_point_of_the_curve(risk: float, coverage: float) -> None:
    """Risks 0, 1/2, 1/3, 1/2: above 1/3 between two points that are not."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    assert metrics.coverage_at_risk(probabilities, np.array([0, 1, 0, 1]), risk) == coverage


def test_coverage_at_risk_of_equals_and_of_nothing() -> None:
    """Of a thousand equals ten are wrong: 1 % is met exactly, and no part of them has less."""
    probabilities = np.tile([0.9, 0.1], (1000, 1))
    labels = (np.arange(1000) < 10).astype(np.int64)
    assert metrics.coverage_at_risk(probabilities, labels, 0.01) == 1
    assert metrics.coverage_at_risk(probabilities, labels, 0.009) == 0


@pytest.mark.skipif(not os.environ.get("GATE_DATA_DIR"), reason="needs hmc_cifar10 and cifar10")
def test_figures_of_the_hmc_reference() -> None:
    """The predictive distribution of Izmailov et al. 2021, and what it is known to score."""
    folder = Path(os.environ["GATE_DATA_DIR"])
    labels = read_idx(folder / "cifar10" / "t10k-labels-idx1-ubyte.gz").astype(np.int64)
    with np.load(folder / "hmc_cifar10" / "probs.npz") as archive:
        probabilities = archive["probs"].astype(np.float64)
    assert metrics.accuracy(probabilities, labels) == pytest.approx(0.9144, abs=1e-9)
    assert metrics.negative_log_likelihood(probabilities, labels) == pytest.approx(
        0.27731, abs=5e-6
    )
    assert metrics.calibration_error(probabilities, labels) == pytest.approx(0.05217, abs=5e-6)
    assert metrics.brier(probabilities, labels) == pytest.approx(0.13393, abs=5e-6)
    assert metrics.aurc(probabilities, labels) == pytest.approx(0.012543, abs=5e-7)
    coverage = metrics.coverage_at_risk(probabilities, labels, 0.01)
    assert coverage == pytest.approx(0.6932, abs=5e-5)


def test_ensemble_curve_is_the_mean_over_subsets() -> None:
    """Probabilities of the label .2, .4 and .9, of one image: by hand."""
    members = np.array([[[0.2, 0.8], [0.4, 0.6], [0.9, 0.1]]])
    curve = metrics.ensemble_curve(members, np.array([0]))
    pairs = [0.3, 0.55, 0.65]
    expected = [-np.log([0.2, 0.4, 0.9]).mean(), -np.log(pairs).mean(), -math.log(0.5)]
    assert curve == pytest.approx(expected)


def test_ensemble_curve_never_rises() -> None:
    print("seed 5")
    randomness = np.random.default_rng(5)
    members = randomness.dirichlet([0.5] * 4, (60, 6))
    assert (np.diff(metrics.ensemble_curve(members, randomness.integers(0, 4, 60))) < 0).all()


@pytest.mark.parametrize(
    ("nll", "networks"),
    [(9.0, 1), (0.5, 1), (0.4, 2), (0.45, 1.5), (0.325, 2.75), (0.3, 3), (0.29, math.inf)],
)
def test_deep_ensemble_equivalent(nll: float, networks: float) -> None:
    curve = np.array([0.5, 0.4, 0.3])
    assert metrics.deep_ensemble_equivalent(nll, curve) == pytest.approx(networks)
