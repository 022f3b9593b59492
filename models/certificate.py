"""A certificate of selective risk: how often the gate is wrong among the images that it accepts.

The gate accepts an image with OOD score S and mean probabilities p̄ if its conformal p-value is
above α and max p̄ ≥ τ. From n calibration images a certificate promises, for new images drawn
independently from the same law,

    P(wrong | accepted) ≤ r*    and    P(accepted) ≥ coverage_bound,

both at once, with probability ≥ 1 − δ over the draw of the calibration images. The same images set
the flag, choose τ and prove the promise; the law is arbitrary, ties included. Ensemble, score, α,
r* and δ must have been chosen without them. If the gate also abstains for other reasons, the
promise holds while these do not depend on the image (a late answer). Nothing is promised about
shifted or foreign images, or about a single class.

Proof. Let rank = max{k : k/(n + 1) ≤ α}. The p-value is above α exactly where S ≤ t, the rank-th
largest calibration score (rank 0 flags nothing: t = ∞). Look first at the rank − 1 images with the
largest scores alone. The other m = n − rank + 1, which the flag spares, are independent draws of Z,
the law of an image whose score lies below those seen, and t is their largest score. (If the score
before it equals t there is no certificate.) Each statement fails with its share of δ at most:

    ρ(τ) = P_Z(wrong | max p̄ ≥ τ) ≤ U    Clopper-Pearson: k errors among a accepted images
    c(τ) = P_Z(max p̄ ≥ τ) ≥ L            Clopper-Pearson: a among m, for all τ at once (union)
    P_Z(S > t) ≤ β = 1 − δ_β^(1/m)        t is the largest of m draws
    P(flagged) = P(S > t) ≤ F             at worst Beta(rank, n + 1 − rank) distributed

Hence P(wrong | accepted) ≤ h(τ) = ρ c/(c − β) ≤ U L/(L − β). Each h(τ) is a constant once the
flagged images have been seen, so h(τ) ≤ r* can be tested in a fixed sequence of τ, each at the full
share of δ: only the first false hypothesis counts, as the walk ends at the first failure (Bauer
1991; learn then test: Angelopoulos et al. 2021, arXiv 2110.01052). And P(accepted)
≥ (1 − x) c − (P(flagged) − x) ≥ L − F with x = P(S beyond Z). The shares add up to δ.

The walk goes from strict to lenient and begins at 1 − τ ≈ 5 r*. An ensemble that is not
overconfident errs at most as often as the mean of 1 − max p̄ among the accepted, which is far less
than its largest value 1 − τ: there a proof is likely, while a stricter start accepts too few
images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.conformal import ConformalTest

THRESHOLDS = tuple(round(1 - float(f"{10 ** (-k / 20):.2g}"), 6) for k in range(80, -1, -1))
"""All τ, strict to lenient: 20 values of 1 − τ a decade, from 0.0001 to 1."""
START = 5.0
"""(1 − τ)/r* at the first τ of the walk."""
ERROR_SHARE = 0.97
"""Part of δ for the number of errors, the statement that needs the most images."""
OTHER_SHARE = 0.01
"""Part of δ for each of the other three statements."""


class CertificateError(ValueError):
    """Arguments from which nothing can be proved."""


@dataclass(frozen=True)
class Certificate:
    """What was proved of the gate with levels `alpha` and `threshold`, and from what.

    Attributes:
        target_risk: r*, which bounds P(wrong | accepted).
        confidence: 1 − δ, of the bounds of risk and coverage together.
        calibration_size: n, images.
        alpha: false-alarm rate of the OOD flag.
        threshold: τ, the least max p̄ that is accepted.
        accepted: calibration images that the gate accepts.
        errors: those of them that it gets wrong.
        risk_bound: upper bound of P(wrong | accepted) at this τ, at most r*.
        coverage_bound: lower bound of P(accepted).
    """

    target_risk: float
    confidence: float
    calibration_size: int
    alpha: float
    threshold: float
    accepted: int
    errors: int
    risk_bound: float
    coverage_bound: float

    @property
    def coverage(self) -> float:
        """Share of the calibration images that the gate accepts."""
        return self.accepted / self.calibration_size

    @property
    def false_abstain_bound(self) -> float:
        """Upper bound of the rate at which the gate abstains on in-distribution images."""
        return 1 - self.coverage_bound


def clopper_pearson_upper(errors: int, size: int, confidence: float) -> float:
    """The rate p with P(Binomial(size, p) ≤ errors) = 1 − confidence; 1 if all are errors.

    The true rate is below it with probability ≥ confidence (Clopper & Pearson 1934). It is also the
    quantile of Beta(errors + 1, size − errors) at `confidence`.

    Raises:
        CertificateError: not 0 ≤ errors ≤ size, or not 0 < confidence < 1.
    """
    return -math.expm1(-_upper_exponent(errors, size, confidence))


def clopper_pearson_lower(successes: int, size: int, confidence: float) -> float:
    """The rate p with P(Binomial(size, p) ≥ successes) = 1 − confidence; 0 without successes.

    Raises:
        CertificateError: not 0 ≤ successes ≤ size, or not 0 < confidence < 1.
    """
    return math.exp(-_upper_exponent(size - successes, size, confidence))


def certify(
    max_probability: NDArray[np.floating],
    correct: NDArray[np.bool_],
    scores: NDArray[np.floating],
    alpha: float,
    target_risk: float,
    confidence: float,
    floor: float = 0.0,
) -> Certificate | None:
    """The certificate of the most lenient τ on the walk, or None if nothing can be promised.

    Args:
        max_probability: max p̄ of the calibration images, [n].
        correct: whether the label of max p̄ is right, [n].
        scores: the OOD score that raises the flag, [n].
        alpha: false-alarm rate of the flag.
        target_risk: r*.
        confidence: 1 − δ.
        floor: the walk goes no further than to this τ.

    Raises:
        CertificateError: a level outside (0, 1), unequal lengths, or no probability.
        CalibrationError: there are no scores, or one is not finite.
    """
    _check_levels(alpha=alpha, target_risk=target_risk, confidence=confidence)
    test = ConformalTest.fit(scores)
    probability = np.asarray(max_probability, dtype=np.float64)
    right = np.asarray(correct)
    _check_images(probability, right, test.size)

    spared = test.p_values(scores) > alpha
    rank = int(np.count_nonzero(np.arange(1, test.size + 1) / (test.size + 1) <= alpha))
    m = int(np.count_nonzero(spared))
    if m != test.size - max(rank - 1, 0):
        return None
    error_delta, other_delta = ERROR_SHARE * (1 - confidence), OTHER_SHARE * (1 - confidence)
    flagged = clopper_pearson_upper(rank - 1, test.size, 1 - other_delta) if rank else 0.0
    beyond = clopper_pearson_upper(0, m, 1 - other_delta)

    certificate = None
    first = max(0.0, 1 - START * target_risk)
    walk = [threshold for threshold in THRESHOLDS if threshold <= first]
    for threshold in walk:
        if threshold < floor:
            break
        kept = spared & (probability >= threshold)
        accepted = int(np.count_nonzero(kept))
        errors = int(np.count_nonzero(kept & ~right))
        share = clopper_pearson_lower(accepted, m, 1 - other_delta / len(walk))
        if share <= beyond:
            break
        risk = clopper_pearson_upper(errors, accepted, 1 - error_delta) * share / (share - beyond)
        if risk > target_risk:
            break
        certificate = Certificate(
            target_risk=target_risk,
            confidence=confidence,
            calibration_size=test.size,
            alpha=alpha,
            threshold=threshold,
            accepted=accepted,
            errors=errors,
            risk_bound=risk,
            coverage_bound=max(0.0, share - flagged),
        )
    return certificate


def _upper_exponent(errors: int, size: int, confidence: float) -> float:
    """−log(1 − p) of the upper bound p, by Newton's method.

    With y = −log(1 − p) and S = P(Binomial ≤ k)/P(Binomial = k), d log P(Binomial ≤ k)/dy is
    −(n − k)/S. The logarithm is concave in y: after one step the iterates fall to the root.
    """
    if not 0 <= errors <= size:
        raise CertificateError(f"{errors} of {size} is no share")
    _check_levels(confidence=confidence)
    if errors == size:
        return math.inf
    target = math.log(1 - confidence) - _log_choose(size, errors)
    counts = np.arange(errors, 0, -1)
    odds = counts / (size - counts + 1)
    y, last = -math.log1p(-(errors + 1) / (size + 1)), math.inf
    while True:
        terms = 1 + float(np.cumprod(odds / math.expm1(y)).sum())
        tail = math.log(terms) + errors * math.log(-math.expm1(-y)) - (size - errors) * y
        step = (tail - target) * terms / (size - errors)
        if abs(step) <= 1e-14 * y or abs(step) >= last:
            return y
        y, last = y + step, abs(step)


def _log_choose(size: int, errors: int) -> float:
    return math.lgamma(size + 1) - math.lgamma(errors + 1) - math.lgamma(size - errors + 1)


def _check_levels(**levels: float) -> None:
    for name, level in levels.items():
        if not 0 < level < 1:
            raise CertificateError(f"{name} must lie between 0 and 1, got {level}")


def _check_images(probability: NDArray[np.float64], right: NDArray[np.bool_], size: int) -> None:
    if not probability.shape == right.shape == (size,):
        raise CertificateError(
            f"{size} scores, probabilities {probability.shape}, answers {right.shape}"
        )
    if right.dtype != np.bool_:
        raise CertificateError(f"correct must be bool, got {right.dtype}")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise CertificateError("max_probability must be numbers from 0 to 1")
