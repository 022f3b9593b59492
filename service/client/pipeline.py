"""Many images over few connections, without waiting for one answer to ask the next."""

from __future__ import annotations

import asyncio
import ssl as tls
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import Self, Unpack

import h11

from service.client.answer import Answer, abstention
from service.client.errors import ConnectError, DeadlineError, GateClientError
from service.client.images import ImageLike, load
from service.client.lane import Lane, NotProcessedError
from service.client.options import DEFAULT_TIMEOUT, Options, endpoint, with_options
from service.client.reading import Reply, Terms, read_answers


class Pipeline:
    """A few connections, on each of which `depth` requests may wait for their answers.

    It fails closed, as `AsyncGateClient.gate`. A request whose connection is lost is sent again,
    once, on another: that is safe, since asking changes nothing. One that the service did not come
    to before it closed in good order (Connection: close) is sent again without being counted.
    No more than `connections · depth` images are under way at a time.

    Args:
        base_url: where the service is; asked directly, without a proxy.
        connections: how many to open; they are opened when the others are busy.
        depth: requests on one connection that wait for their answers.
        headers: sent with every request.
        expected_digest: `sha256:...` of the one bundle whose answers count.
        require_certificate: whether only answers with a valid certificate count.
        ssl: for https, in place of `ssl.create_default_context()`.
        options: of every request.

    Raises:
        ValueError: `base_url` is no http or https address, or a number is not positive.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connections: int = 16,
        depth: int = 4,
        headers: Mapping[str, str] | None = None,
        expected_digest: str | None = None,
        require_certificate: bool = False,
        ssl: tls.SSLContext | None = None,
        **options: Unpack[Options],
    ) -> None:
        if connections < 1 or depth < 1:
            raise ValueError("connections and depth must be at least 1")
        self._url = with_options(endpoint(base_url), options)
        self._timeout = options.get("timeout", DEFAULT_TIMEOUT)
        self._tls = (ssl or tls.create_default_context()) if self._url.scheme == "https" else None
        self._connections = connections
        self._terms = Terms(expected_digest, require_certificate)
        fixed = {"Content-Type": "application/octet-stream", "Accept": "application/json"}
        named = {"Host": self._url.netloc.decode("ascii"), **fixed, **(headers or {})}
        self._request = h11.Request(
            method="POST", target=self._url.raw_path, headers=list(named.items())
        )
        self._capacity = connections * depth
        self._places = asyncio.Semaphore(self._capacity)
        self._opening = asyncio.Lock()
        self._lanes: list[Lane] = []
        self._closed = False

    async def gate(self, image: ImageLike) -> Answer:
        """The answer to one image; an abstention if there is none to act on."""
        content = await load(image)
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    reply = await self._ask(content, deadline)
            except TimeoutError as error:
                raise DeadlineError(f"no answer within {self._timeout:g} s") from error
            (answer,) = read_answers(reply, 1, self._terms)
        except GateClientError as error:
            return abstention(error)
        return answer

    async def map(self, images: Iterable[ImageLike]) -> list[Answer]:
        """The answers to images, in order."""
        return [answer async for answer in self.stream(images)]

    async def stream(self, images: Iterable[ImageLike]) -> AsyncIterator[Answer]:
        """The answers to images, in order, as they come; images are taken as places get free."""
        window: deque[asyncio.Task[Answer]] = deque()
        try:
            for image in images:
                if len(window) == self._capacity:
                    yield await window[0]
                    window.popleft()
                window.append(asyncio.create_task(self.gate(image)))
            while window:
                yield await window[0]
                window.popleft()
        finally:
            for task in window:
                task.cancel()
            await asyncio.gather(*window, return_exceptions=True)

    async def aclose(self) -> None:
        """Close the connections; what is under way abstains."""
        self._closed = True
        for lane in self._lanes:
            lane.close(_closed())
        for lane in self._lanes:
            await lane.closed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _ask(self, image: bytes, deadline: float) -> Reply:
        lost = 0
        while True:
            await self._places.acquire()
            try:
                lane = await self._lane()
            except BaseException:
                self._places.release()
                raise
            answer = lane.send(image, deadline)
            answer.add_done_callback(lambda _: self._places.release())
            await lane.drained()
            await asyncio.wait((answer,))  # unlike `await answer`, this keeps the place in the line
            try:
                return answer.result()
            except NotProcessedError:
                continue
            except ConnectError:
                lost += 1
                if lost > 1:
                    raise

    async def _lane(self) -> Lane:
        """The connection with the fewest requests; a new one if all are busy."""
        async with self._opening:
            lanes = self._lanes = [lane for lane in self._lanes if lane.usable]
            if not self._closed and len(lanes) < self._connections and all(map(len, lanes)):
                try:
                    lanes.append(await self._open())
                except OSError as error:
                    if not lanes:
                        raise ConnectError(f"cannot connect: {error}") from error
        if self._closed:
            for lane in lanes:
                lane.close(_closed())
            raise _closed()
        return min(lanes, key=lambda lane: (not lane.usable, len(lane)))

    async def _open(self) -> Lane:
        url = self._url
        port = url.port or (443 if url.scheme == "https" else 80)
        _, lane = await asyncio.get_running_loop().create_connection(
            lambda: Lane(self._request), url.raw_host.decode("ascii"), port, ssl=self._tls
        )
        return lane


def _closed() -> ConnectError:
    return ConnectError("the pipeline is closed")
