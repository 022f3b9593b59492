"""What an application has to have installed."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import service.client
loaded = {name for name in sys.modules if name.split(".")[0] in ("models", "service", "training")}
print(*sorted(name for name in loaded if not name.startswith("service.client")))
heavy = "fastapi numpy onnxruntime orjson PIL pydantic safetensors starlette torch typer uvicorn"
print(*[name for name in heavy.split() if name in sys.modules])
"""


def test_the_client_needs_nothing_of_the_service():
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert printed == "service\n\n"
