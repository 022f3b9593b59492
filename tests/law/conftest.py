"""Exact stationary laws. Every test prints its seed, and its bound is 4 known standard errors."""

from __future__ import annotations

import pytest
import torch

SEED = 20260101


@pytest.fixture
def generator() -> torch.Generator:
    print(f"seed {SEED}")
    return torch.Generator().manual_seed(SEED)
