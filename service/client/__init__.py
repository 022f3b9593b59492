"""What a downstream application imports: a client that fails closed.

`gate` never raises for what the service or the network does: whatever goes wrong is an `Answer`
that abstains and says why. This package imports nothing else of the project; it needs httpx, and
h11, which comes with it.
"""

from service.client.answer import Answer, Ood, Uncertainty
from service.client.asynchronous import AsyncGateClient
from service.client.errors import (
    CertificateError,
    ConnectError,
    DeadlineError,
    GateClientError,
    MalformedAnswerError,
    ModelMismatchError,
    StatusError,
)
from service.client.images import ImageLike
from service.client.options import Options
from service.client.pipeline import Pipeline
from service.client.synchronous import GateClient

__all__ = [
    "Answer",
    "AsyncGateClient",
    "CertificateError",
    "ConnectError",
    "DeadlineError",
    "GateClient",
    "GateClientError",
    "ImageLike",
    "MalformedAnswerError",
    "ModelMismatchError",
    "Ood",
    "Options",
    "Pipeline",
    "StatusError",
    "Uncertainty",
]
