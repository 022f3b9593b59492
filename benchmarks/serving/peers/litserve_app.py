"""LitServe: its FastAPI process, and one worker process behind a queue.

No `from __future__ import annotations`: LitServe reads the annotations as types.
"""

from typing import Annotated, Any

import litserve
from fastapi import Body
from fastapi.responses import Response

from benchmarks.serving.peers.ensemble import Ensemble, Floats, Options, encode

OPTIONS = Options.from_environment()


class Predict(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.ensemble = Ensemble.open(OPTIONS.bundle)

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/png")]) -> Floats:
        return self.ensemble.decode(request)

    def batch(self, inputs: list[Floats]) -> list[Floats]:
        return inputs

    def predict(self, x: list[Floats]) -> list[dict[str, Any]]:
        return self.ensemble.answers(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> Response:
        return Response(encode(output), media_type="application/json")


if __name__ == "__main__":
    api = Predict(max_batch_size=OPTIONS.batch, batch_timeout=OPTIONS.wait_ms / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=OPTIONS.port,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
