"""mosec: one worker process behind a Rust front."""

from __future__ import annotations

import sys

from mosec import Server, Worker

from benchmarks.serving.peers.ensemble import Ensemble, Floats, Options, encode

OPTIONS = Options.from_environment()


class Predict(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.ensemble = Ensemble.open(OPTIONS.bundle)

    def deserialize(self, data: bytes) -> Floats:
        return self.ensemble.decode(data)

    def forward(self, data: list[Floats]) -> list[bytes]:
        return [encode(answer) for answer in self.ensemble.answers(data)]

    def serialize(self, data: bytes) -> bytes:
        return data


if __name__ == "__main__":
    sys.argv = [sys.argv[0], "--address", "127.0.0.1", "--port", str(OPTIONS.port)]
    server = Server()
    server.append_worker(
        Predict,
        max_batch_size=OPTIONS.batch,
        max_wait_time=OPTIONS.wait_ms,
        route="/predict",
    )
    server.run()
