"""Ray Serve: its HTTP proxy, and one replica that batches.

No `from __future__ import annotations`: Ray pickles the class by value.
"""

import signal

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.serving.peers.ensemble import Ensemble, Options, encode

OPTIONS = Options.from_environment()


class Predict:
    def __init__(self) -> None:
        self.ensemble = Ensemble.open(OPTIONS.bundle)

    @serve.batch(max_batch_size=OPTIONS.batch, batch_wait_timeout_s=OPTIONS.wait_ms / 1000)
    async def answers(self, pngs: list[bytes]) -> list[bytes]:
        images = [self.ensemble.decode(png) for png in pngs]
        return [encode(answer) for answer in self.ensemble.answers(images)]

    async def __call__(self, request: Request) -> Response:
        answer: bytes = await self.answers(await request.body())
        return Response(answer, media_type="application/json")


DEPLOYED = serve.deployment(max_ongoing_requests=1024, logging_config={"enable_access_log": False})(
    Predict
)


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": OPTIONS.port})
    serve.run(DEPLOYED.bind(), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
