"""The application: routes, error handlers, and the life of the threads behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.datastructures import State

from service.api import exposition, health, models, oip, predict
from service.api.body import Buffers
from service.api.context import RequestContext
from service.api.heads import Heads
from service.api.openapi import describe
from service.api.problems import add_handlers
from service.gate import Gate, close_gate, open_gate
from service.metrics import Metrics
from service.repository import Model, open_model
from service.settings import Settings, load_settings


class AppState(State):
    """The application's state, in plain attributes: every request reads some."""

    gate: Gate
    metrics: Metrics
    model: Model | None
    draining: bool
    buffers: Buffers
    heads: Heads

    def __setattr__(self, key: str, value: object) -> None:
        object.__setattr__(self, key, value)


def create_app(settings: Settings | None = None, model: Model | None = None) -> FastAPI:
    """Build the application.

    Args:
        settings: the options; by default those of the environment.
        model: what is served; by default the settings' bundle, loaded when the server starts.

    Raises:
        SettingsError: the environment holds an invalid option.
    """
    chosen = settings or load_settings()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.gate = open_gate(chosen, app.state.model or open_model(chosen), metrics)
        try:
            yield
        finally:
            await close_gate(app.state.gate)

    app: FastAPI = FastAPIOffline(
        title="Langevin Gate",
        summary='An image classifier that can say "I don\'t know"',
        version=_version(),
        lifespan=lifespan,
    )
    app.state = state = AppState()
    state.metrics, state.model, state.draining = metrics, model, False
    state.buffers, state.heads = Buffers(chosen.max_buffered_bytes), Heads()
    app.openapi = partial(describe, app)  # type: ignore[method-assign]
    for module in (predict, oip, models, health, exposition):
        app.include_router(module.router)
    add_handlers(app)
    app.add_middleware(RequestContext, metrics=metrics, access_log=chosen.access_log)
    return app


def _version() -> str:
    try:
        return version("langevin-gate")
    except PackageNotFoundError:
        return "0.1.0"
