"""Another bundle in the place of the one that is served, without a request lost."""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import State

from service.api.predict import forget_gates
from service.errors import StartupError
from service.gate import Gate, close_gate, open_gate
from service.repository import open_model
from service.settings import Settings

log = logging.getLogger("service.reload")


async def reload(state: State, settings: Settings) -> None:
    """Open what the settings name now. If that is another bundle, it answers from now on.

    It has been verified, has passed its self-test and is warm before it answers anything. Requests
    that had begun are answered by the old one, which is let go when the last of them has left. If
    the new one cannot be opened, the log says why, and the old one goes on.

    Args:
        state: of the application; its gate is replaced.
        settings: those that it was started with.
    """
    old: Gate = state.gate
    try:
        model = await asyncio.to_thread(open_model, settings)
    except Exception as error:
        unforeseen = not isinstance(error, StartupError)
        log.error("reload: %s; what was served is served on", error, exc_info=unforeseen)
        return
    before, after = old.model.bundle.digest, model.bundle.digest
    if before == after:
        log.info("reload: sha256:%s is served already", after[:12])
        return
    state.gate, state.model = open_gate(settings, model, old.metrics), None
    log.info("reload: serving %s (sha256:%s)", model.bundle.path, after[:12])
    await old.door.emptied()
    await close_gate(old)
    forget_gates()
    log.info("reload: sha256:%s has answered its last request", before[:12])
