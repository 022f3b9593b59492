"""The client for code without asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from service.client.answer import Answer
from service.client.asynchronous import AsyncGateClient
from service.client.images import ImageLike
from service.client.options import Options

T = TypeVar("T")


class GateClient:
    """`AsyncGateClient` with an event loop in a thread of its own, for any number of threads.

    The thread is what makes `timeout` hold for all of a request: blocking sockets bound each read
    by itself, so that a server which sends a byte now and then, or a name server that is silent,
    could hold a caller for ever. It starts with the first request; after a fork, make a new client.

    Arguments and errors are those of `AsyncGateClient`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        expected_digest: str | None = None,
        require_certificate: bool = False,
        retries: int = 0,
        transport: httpx.AsyncBaseTransport | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._client = AsyncGateClient(
            base_url,
            headers=headers,
            expected_digest=expected_digest,
            require_certificate=require_certificate,
            retries=retries,
            transport=transport,
            **options,
        )
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def predict(self, image: ImageLike, **options: Unpack[Options]) -> Answer:
        """As `AsyncGateClient.predict`."""
        return self._wait(self._client.predict(image, **options))

    def predict_many(self, images: Iterable[ImageLike], **options: Unpack[Options]) -> list[Answer]:
        """As `AsyncGateClient.predict_many`."""
        return self._wait(self._client.predict_many(images, **options))

    def gate(self, image: ImageLike, **options: Unpack[Options]) -> Answer:
        """As `AsyncGateClient.gate`: never raises for what the service or the network does."""
        return self._wait(self._client.gate(image, **options))

    def gate_many(self, images: Iterable[ImageLike], **options: Unpack[Options]) -> list[Answer]:
        """As `AsyncGateClient.gate_many`: never raises for what the service or the network does."""
        return self._wait(self._client.gate_many(images, **options))

    def close(self) -> None:
        """Close the connections and end the thread."""
        with self._lock:
            loop, thread, self._closed = self._loop, self._thread, True
            self._loop = self._thread = None
        if loop is None or thread is None or not thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._client.aclose(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _wait(self, request: Coroutine[Any, Any, T]) -> T:
        try:
            loop = self._running_loop()
        except RuntimeError:
            request.close()
            raise
        future = asyncio.run_coroutine_threadsafe(request, loop)
        try:
            return future.result()
        except BaseException:  # such as KeyboardInterrupt: nobody waits for the answer any more
            future.cancel()
            raise

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._loop is None or self._thread is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="gate-client", daemon=True
                )
                self._thread.start()
            elif not self._thread.is_alive():
                raise RuntimeError("the client was used before a fork: make a new one after it")
            return self._loop
