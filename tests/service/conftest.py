"""Applications in this process that answer with the tiny bundle, or with a function."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from models.outputs import Outputs
from service.app import create_app
from service.repository import Model, open_model
from service.settings import Settings
from tests.service import tiny
from tests.waiting import until


@pytest.fixture(scope="session")
def publish(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Publish a variant of the tiny bundle; returns its directory."""

    def make(**changes: Any) -> Path:
        return tiny.publish(tmp_path_factory.mktemp("bundle") / "tiny" / "1", **changes)

    return make


@pytest.fixture(scope="session")
def bundle_path(publish: Callable[..., Path]) -> Path:
    return publish()


@pytest.fixture(scope="session")
def settings(bundle_path: Path) -> Settings:
    return Settings(
        bundle=bundle_path,
        device="cpu",
        threads=1,
        max_batch_images=4,
        max_queue_images=32,
        max_images_per_request=16,
        max_body_bytes=1_000_000,
        max_pixels=90_000,
    )


@pytest.fixture(scope="session")
def model(settings: Settings) -> Model:
    return open_model(settings)


@dataclass(frozen=True)
class FunctionRuntime:
    """A runtime whose logits [B, M, K] are a function of the images, `group` members at a time.

    Its features are the tiny bundle's.
    """

    function: Callable[[np.ndarray], np.ndarray]
    group: int = tiny.GROUP
    members: int = tiny.M
    name: str = "function"
    device: str = "cpu"

    def evaluate(self, seen: int, until: int, images: np.ndarray) -> Outputs:
        return Outputs(self.function(images)[:, seen:until], tiny.features_of(images))


@pytest.fixture
def with_logits(model: Model) -> Callable[[Callable[[np.ndarray], np.ndarray]], Model]:
    """The tiny model with a function in place of its runtime."""

    def make(function: Callable[[np.ndarray], np.ndarray]) -> Model:
        return replace(model, runtime=FunctionRuntime(function))

    return make


class Client(httpx.AsyncClient):
    """A client of an application in this process, with what a server puts in front of it."""

    def __init__(self, app: FastAPI, access_log: bool) -> None:
        front = httpx.ASGITransport(app)
        super().__init__(transport=front, base_url="http://gate")
        self.app = app

    async def until_queued(self, images: int) -> None:
        """Let other tasks run until so many images wait."""
        await until(lambda: self.app.state.gate.scheduler.queued == images)


@asynccontextmanager
async def _started(app: FastAPI, access_log: bool) -> AsyncIterator[Client]:
    async with app.router.lifespan_context(app), Client(app, access_log) as client:
        yield client


Start = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def start(settings: Settings, model: Model) -> Start:
    """Start an application with changed settings, or another model, and a client of it."""

    def make(other: Model | None = None, **changes: Any) -> AbstractAsyncContextManager[Client]:
        changed = settings.model_copy(update=changes)
        return _started(create_app(changed, other or model), changed.access_log)

    return make


@pytest.fixture
async def client(start: Start) -> AsyncIterator[Client]:
    async with start() as client:
        yield client


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return tiny.random_images(12, 3)


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Pixels or a Pillow image as a file's bytes."""

    def make(picture: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture.squeeze())
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def png(images: np.ndarray, encode: Callable[..., bytes]) -> bytes:
    return encode(images[0])
