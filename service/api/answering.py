"""From the images of a request to settled cases: what all routes that ask the model have in common.

upload → images as they were sent → opened → cases → steps of the scheduler → settled
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, TypeVar

from starlette.requests import ClientDisconnect, Request

from service.api.body import SMALL_BYTES, Upload
from service.cases import Case
from service.errors import (
    DeadlineError,
    GateError,
    TooLargeError,
    UnavailableError,
    UploadTimeoutError,
)
from service.gate import Gate
from service.intake import Opened, Prepared, Sent, open_sent, prepare_opened
from service.lanes import Times
from service.results import Json, Options, results

# An image of so many pixels may be decoded in a step with others: more would hold them up.
SMALL_PIXELS = 128 * 128

# A request that is answered sooner than this is not worth watching for its client's departure.
WATCH_AFTER_SECONDS = 0.25

NO_TIME = Times(0.0, 0.0)

T = TypeVar("T")


class Settled(NamedTuple):
    """The images of a request, each settled, or why it is none.

    Attributes:
        cases: in the order in which they were sent.
        decode_seconds: until all were opened, and the large ones decoded.
        times: in the scheduler.
    """

    cases: Sequence[Case | GateError]
    decode_seconds: float
    times: Times


async def counted(request: Request, upload: Upload, answer: Awaitable[T]) -> T:
    """Await an answer; count why there is none, and let go of the upload."""
    state = request.app.state
    gate: Gate = state.gate
    try:
        with gate.door.visit():
            return await answer
    except GateError as error:
        count_rejection(gate, error, state.draining)
        raise
    except ClientDisconnect:
        gate.metrics.count_rejection("cancelled")
        raise
    finally:
        upload.release()


async def received(gate: Gate, body: Awaitable[T]) -> T:
    """Await a body.

    Raises:
        UploadTimeoutError: it does not arrive in time.
    """
    patience = gate.settings.request_timeout_seconds
    try:
        async with asyncio.timeout(patience):
            return await body
    except TimeoutError as error:
        raise UploadTimeoutError(f"the body did not arrive within {patience:g} s") from error


async def settle(
    request: Request,
    gate: Gate,
    options: Options,
    sent: Sequence[Sent],
    size: int,
    deadline: float,
    background: bool,
) -> Settled:
    """Settle images, as far as they are not known already.

    Args:
        request: whose client waits.
        gate: the service.
        options: what is asked.
        sent: the images.
        size: bytes of all.
        deadline: when they must be settled, by the gate's clock.
        background: whether others go first.

    Raises:
        GateError: it cannot be done in time, or not at all.
        ClientDisconnect: the client left.
    """
    began, cache = gate.clock(), gate.cache
    keys = [cache.key(gate.model.bundle.digest, options.rule, image) for image in sent]
    known = [cache.get(key) for key in keys]
    unseen = [image for image, case in zip(sent, known, strict=True) if case is None]
    opened = iter(await _open(gate, unseen, size, deadline) if unseen else ())
    decode_seconds = gate.clock() - began
    cases = [case or _case(next(opened), options) for case in known]
    new = [case for case in cases if isinstance(case, Case) and not case.settled]
    times = await _infer(request, gate, new, deadline, background) if new else NO_TIME
    for key, case in zip(keys, cases, strict=True):
        cache.put(key, case)
    if hits := len(sent) - len(unseen):
        gate.metrics.cache_hits.inc(hits)
    return Settled(cases, decode_seconds, times)


def tell(gate: Gate, options: Options, settled: Settled, request_id: str) -> list[Json]:
    """The results, counted."""
    told = results(gate.model, settled.cases, options, request_id)
    gate.metrics.count_answer(
        options.policy_name, told, settled.decode_seconds, settled.times.queue_seconds
    )
    return told


async def _open(
    gate: Gate, sent: Sequence[Sent], size: int, deadline: float
) -> Sequence[Opened | Prepared | GateError]:
    """Open images, to be decoded in a step with others; where that would hold them up, decode them.

    Raises:
        DeadlineError: they were not decoded in time.
    """
    max_pixels = gate.settings.max_pixels
    if size <= SMALL_BYTES:
        opened = open_sent(sent, max_pixels)
        if all(isinstance(image, GateError) or image.pixels <= SMALL_PIXELS for image in opened):
            return opened

    def check_time() -> None:
        if gate.clock() >= deadline:
            raise DeadlineError("the images were not decoded within the time limit")

    def prepare() -> list[Prepared | GateError]:
        spec = gate.model.manifest.input
        return prepare_opened(open_sent(sent, max_pixels), spec, check_time)

    return await asyncio.get_running_loop().run_in_executor(gate.decoders, prepare)


def _case(image: Opened | Prepared | GateError, options: Options) -> Case | GateError:
    return image if isinstance(image, GateError) else Case(image, options.rule)


async def _infer(
    request: Request, gate: Gate, cases: Sequence[Case], deadline: float, background: bool
) -> Times:
    """Infer, unless the client leaves meanwhile.

    Raises:
        ClientDisconnect: it left; its images are taken out of the queue.
    """
    task = asyncio.current_task()
    assert task is not None
    departure: asyncio.Future[None] | None = None

    def leave(_: object) -> None:
        task.cancel()

    def watch() -> None:
        nonlocal departure
        departure = asyncio.ensure_future(_departure(request))
        departure.add_done_callback(leave)

    timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, watch)
    client = request.client.host if request.client else ""
    try:
        return await gate.scheduler.submit(cases, deadline, client=client, background=background)
    except asyncio.CancelledError:
        if departure is not None and departure.done() and not departure.cancelled():
            task.uncancel()
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        if departure is not None:
            departure.remove_done_callback(leave)
            departure.cancel()


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def count_rejection(gate: Gate, error: GateError, draining: bool) -> None:
    """Count an error, if it turned a request away."""
    if isinstance(error, UnavailableError):
        reason = "draining" if draining else "queue_full"
    elif isinstance(error, TooLargeError):
        reason = "payload"
    elif isinstance(error, DeadlineError | UploadTimeoutError):
        reason = "deadline"
    else:
        return
    gate.metrics.count_rejection(reason)
