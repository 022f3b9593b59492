"""For whom a proxy asks: the short way must see the client that the framework sees."""

from __future__ import annotations

import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.server import ServerState

from service.api.express import ExpressProtocol
from service.api.heads import forwarded_for
from service.app import create_app
from service.server import configure

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("trusted", ["127.0.0.1", "10.0.0.0/8", "*", ""])
@pytest.mark.parametrize("peer", ["127.0.0.1", "10.1.2.3", "192.0.2.1", None])
@pytest.mark.parametrize(
    "forwarded",
    [[], [b""], [b"198.51.100.7"], [b"198.51.100.7, 10.9.9.9"], [b"198.51.100.7", b"203.0.113.5"]],
)
async def test_the_client_is_whom_a_trusted_proxy_names(
    settings, model, monkeypatch, trusted, peer, forwarded
):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    config = configure(create_app(settings, model), settings)
    config.load()
    assert isinstance(config.loaded_app, ProxyHeadersMiddleware)
    headers = [(b"host", b"gate"), *((b"x-forwarded-for", value) for value in forwarded)]
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["client"][0] if scope["client"] else "")

    config.loaded_app.app = app
    client = (peer, 5000) if peer else None
    await config.loaded_app({"type": "http", "client": client, "headers": headers}, None, None)
    protocol = ExpressProtocol(config=config, server_state=ServerState(), app_state={})
    protocol.client = client
    assert protocol.client_host(forwarded_for(headers)) == seen[0]
