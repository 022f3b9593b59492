"""What the data tests share: small real samples, and the full sets where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def samples() -> Path:
    return Path(__file__).parent / "samples"


@pytest.fixture
def real_data() -> Path:
    directory = os.environ.get("GATE_DATA_DIR")
    if not directory:
        pytest.skip("needs the full data sets: set GATE_DATA_DIR")
    return Path(directory)
