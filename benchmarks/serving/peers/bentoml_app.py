"""BentoML: one service with an adaptive batcher; the raw body becomes a batch of one.

No `from __future__ import annotations`: BentoML reads the annotations as types.
"""

from typing import Annotated, Any

import bentoml
from pydantic import BeforeValidator, WithJsonSchema

from benchmarks.serving.peers.ensemble import Ensemble, Options

OPTIONS = Options.from_environment()


def _alone(body: object) -> object:
    return [body] if isinstance(body, bytes) else body


Body = Annotated[
    list[bytes], BeforeValidator(_alone), WithJsonSchema({"type": "string", "format": "binary"})
]


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Predict:
    def __init__(self) -> None:
        self.ensemble = Ensemble.open(OPTIONS.bundle)

    @bentoml.api(batchable=True, max_batch_size=OPTIONS.batch, max_latency_ms=OPTIONS.wait_ms)
    def predict(self, images: Body, /) -> list[dict[str, Any]]:
        return self.ensemble.answers([self.ensemble.decode(png) for png in images])
