"""How fast this could be at most: HTTP without inference, and inference without HTTP.

    python -m benchmarks.serving.limits hello PORT            uvicorn that answers "hello"
    python -m benchmarks.serving.limits canned PORT ANSWER    decodes a PNG, answers a file
    python -m benchmarks.serving.limits inference BUNDLE SECONDS    prints images a second

onnxruntime runs batches of 32, on one thread.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from benchmarks.serving.peers.ensemble import Ensemble

BATCH = 32


class Canned:
    """An ASGI application that decodes what it is sent, if told to, and always answers the same."""

    def __init__(self, answer: bytes, decodes: bool) -> None:
        self.answer, self.decodes = answer, decodes
        length = str(len(answer)).encode()
        self.headers = [(b"content-type", b"application/json"), (b"content-length", length)]

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            body += message["body"]
            more = message["more_body"]
        if self.decodes:
            with Image.open(io.BytesIO(body)) as image:
                np.asarray(image.convert("L"))
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": self.headers,
                "trailers": False,
            }
        )
        await send({"type": "http.response.body", "body": self.answer, "more_body": False})


def inference_rate(bundle: Path, seconds: float) -> float:
    """Images a second that onnxruntime alone gets through."""
    session = Ensemble.open(bundle).session
    images = np.random.default_rng(0).normal(size=(BATCH, 1, 28, 28)).astype(np.float32)
    session.run(["logits"], {"images": images})
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        session.run(["logits"], {"images": images})
        count += BATCH
    return count / elapsed


def main(kind: str, *rest: str) -> None:
    if kind == "inference":
        print(inference_rate(Path(rest[0]), float(rest[1])))
        return
    answer = Path(rest[1]).read_bytes() if kind == "canned" else b"hello"
    uvicorn.run(
        Canned(answer, kind == "canned"),
        host="127.0.0.1",
        port=int(rest[0]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
