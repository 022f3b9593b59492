"""What an ensemble computes of images; everything that is said of them is made of this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Outputs:
    """Of B images.

    Attributes:
        logits: of every member, [B, M, K].
        features: penultimate, of the first group of G members, [B, G, F].
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]


Ensemble: TypeAlias = Callable[[NDArray[np.float32]], Outputs]
"""Prepared images [B, C, H, W] to what the ensemble computes of them."""
