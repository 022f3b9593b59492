from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy.special import digamma, polygamma

from training.relaxation import relaxation


def test_windows_at_equilibrium_are_at_the_noise_floor() -> None:
    """Of k normal draws each: E KL = ½ (1/k + ln a − ψ(a)), a = (k − 1)/2, which is about 1/k.

    Var KL = ¼ (2/k² + ψ'(a) − 1/a). The end is long enough to be exact.
    """
    k, windows, final = 20, 2000, 400_000
    print("seed 2")
    draws = np.random.default_rng(2).normal(size=(1, windows * k + final))
    kl = np.array(relaxation(draws, k, final).kl[:windows])
    a = (k - 1) / 2
    mean = (1 / k + math.log(a) - digamma(a)) / 2
    variance = (2 / k**2 + polygamma(1, a) - 1 / a) / 4
    assert mean == pytest.approx(1 / k, rel=0.05)
    assert kl.mean() == pytest.approx(mean, abs=4 * math.sqrt(variance / windows))


def test_relaxation_of_an_autoregressive_series_is_exact() -> None:
    """x_t = φ x_{t−1} + sqrt(1 − φ²) ξ from x_0: mean φ^t x_0, variance 1 − φ^{2t}, to 4 s.e."""
    chains, length, phi, start = 4000, 90, 0.8, 4.0
    print("seed 5")
    randomness = np.random.default_rng(5)
    position, points = np.full(chains, start), []
    for _ in range(length):
        noise = math.sqrt(1 - phi**2) * randomness.normal(size=chains)
        position = phi * position + noise
        points.append(position)
    final = 50
    curve = relaxation(np.stack(points, axis=1), 1, final)
    effective = chains * final * (1 - phi) / (1 + phi)
    for step in range(1, 12):
        mu, v = phi**step * start, 1 - phi ** (2 * step)
        exact = (v + mu**2 - 1 - math.log(v)) / 2
        slopes = mu**2 * v + (1 - 1 / v) ** 2 * v**2 / 2
        reference = mu**2 + (1 - v - mu**2) ** 2 / 2
        error = math.sqrt(slopes / chains + reference / effective)
        assert curve.kl[step - 1] == pytest.approx(exact, abs=4 * error + 1 / chains)


def test_burn_in_is_where_the_first_two_windows_in_a_row_are_relaxed() -> None:
    level = np.array([1.0, -1.0, 1.0, -1.0] * 12)
    shift = np.zeros(48)
    shift[:8], shift[12:16] = 9.0, 9.0
    curve = relaxation(np.stack([level + shift, level - shift]), 4, 16)
    assert curve.starts == tuple(range(0, 48, 4))
    assert [value < 0.1 for value in curve.kl[:5]] == [False, False, True, False, True]
    assert curve.burn_in == 16
    assert asdict(curve)["kl"] == curve.kl


def test_a_chain_that_relaxes_only_at_its_end_has_no_burn_in() -> None:
    draws = np.array([1.0, -1.0] * 10)[None] + np.r_[np.full(12, 9.0), np.zeros(8)]
    assert relaxation(draws, 4, 8).burn_in is None


def test_constant_windows() -> None:
    assert relaxation(np.ones((2, 8)), 2, 4).kl == (0.0,) * 4
    stuck = np.ones((2, 8))
    stuck[:, 0] = 2.0, 3.0
    assert relaxation(stuck, 2, 4).kl == (math.inf, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("chains", "length", "width", "final"),
    [(1, 8, 1, 4), (2, 8, 0, 4), (2, 8, 2, 1), (2, 8, 3, 3), (2, 8, 2, 5)],
)
def test_too_short(chains: int, length: int, width: int, final: int) -> None:
    with pytest.raises(ValueError, match="two of them before the end"):
        relaxation(np.zeros((chains, length)), width, final)
