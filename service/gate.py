"""What one running service is made of."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from service.cache import CaseCache
from service.cases import Case
from service.door import Door
from service.metrics import Metrics
from service.repository import Model
from service.runtime import available_cpus
from service.scheduler import Clock, Scheduler, Step
from service.settings import Settings

CLOSE_SECONDS = 1.0


@dataclass(frozen=True, eq=False)
class Gate:
    """A model, what stands before it, and the threads that decode images."""

    settings: Settings
    model: Model
    scheduler: Scheduler[Case]
    cache: CaseCache
    door: Door
    decoders: ThreadPoolExecutor
    metrics: Metrics
    clock: Clock


def open_gate(
    settings: Settings, model: Model, metrics: Metrics, clock: Clock = time.monotonic
) -> Gate:
    """Start the threads of a service that answers with `model`."""

    def observe(step: Step) -> None:
        metrics.count_step(step.images, step.stage, step.seconds)

    scheduler = Scheduler(
        model.stepper.step,
        max_batch=settings.max_batch_images,
        max_queue=settings.max_queue_images,
        clock=clock,
        observe=observe,
    )
    metrics.serve(model, lambda: scheduler.queued)
    decoders = ThreadPoolExecutor(min(8, available_cpus()), thread_name_prefix="decode")
    cache, door = CaseCache(settings.cache_images), Door(settings.max_queue_images)
    return Gate(settings, model, scheduler, cache, door, decoders, metrics, clock)


async def close_gate(gate: Gate) -> None:
    """Stop the threads; by now the server has waited for the open requests, or cancelled them."""
    await gate.scheduler.close(CLOSE_SECONDS)
    gate.decoders.shutdown(wait=False, cancel_futures=True)
