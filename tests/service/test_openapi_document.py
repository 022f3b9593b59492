from __future__ import annotations

import json
from pathlib import Path

from service.app import create_app
from service.settings import Settings


def test_the_committed_description_is_the_one_that_is_served() -> None:
    committed = Path(__file__).parents[2] / "docs" / "openapi.json"
    served = create_app(Settings()).openapi()
    assert json.loads(committed.read_text()) == served, "run `make docs`"
