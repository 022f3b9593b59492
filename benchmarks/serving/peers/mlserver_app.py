"""MLServer: a model in the server's own process, behind its adaptive batcher.

No `from __future__ import annotations`: FastAPI reads the handler's annotations.
"""

from fastapi import Request, Response
from mlserver import MLModel
from mlserver.context import model_context
from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput, ResponseOutput

from benchmarks.serving.peers.ensemble import Ensemble, Options, encode


class Predict(MLModel):
    async def load(self) -> bool:
        self.ensemble = Ensemble.open(Options.from_environment().bundle)
        return True

    @custom_handler(rest_path="/predict")
    async def answer(self, request: Request) -> Response:
        png = RequestInput(name="png", datatype="BYTES", shape=[1], data=[await request.body()])
        with model_context(self.settings):
            answered = await self.predict(InferenceRequest(inputs=[png]))
        return Response(answered.outputs[0].data.root[0], media_type="application/json")

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = [self.ensemble.decode(png) for png in payload.inputs[0].data.root]
        answers = [encode(answer) for answer in self.ensemble.answers(images)]
        output = ResponseOutput(name="answer", datatype="BYTES", shape=[len(answers)], data=answers)
        return InferenceResponse(model_name=self.name, outputs=[output])
