"""The client for asyncio, on httpx."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack

import httpx

from service.client.answer import Answer, abstention
from service.client.errors import (
    ConnectError,
    DeadlineError,
    GateClientError,
    MalformedAnswerError,
)
from service.client.images import ImageLike, batches, load
from service.client.options import DEFAULT_TIMEOUT, Options, endpoint, with_options
from service.client.reading import MAX_ANSWER_BYTES, Reply, Terms, read_answers

BINARY = "application/octet-stream"

# Before the k-th further try of a connection that failed: FIRST_PAUSE · 2^k seconds.
FIRST_PAUSE = 0.05


class AsyncGateClient:
    """A client that keeps its connections.

    `predict` raises what `service.client.errors` names; `gate` abstains in its place. Both raise
    what `image_bytes` raises of an image that the caller itself cannot read.

    Args:
        base_url: where the service is, such as http://127.0.0.1:8000.
        headers: sent with every request.
        expected_digest: `sha256:...` of the one bundle whose answers count.
        require_certificate: whether only answers with a valid certificate count.
        retries: further tries, all within `timeout`, after a connection that failed, or a 503
            whose Retry-After still fits. To ask twice is safe, since asking changes nothing.
        transport: how requests are sent, as httpx has it: other certificates, a proxy, a test.
        options: of every request that names no others.

    Raises:
        ValueError: `base_url` is no http or https address.
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
        self._url = endpoint(base_url)
        self._terms = Terms(expected_digest, require_certificate)
        self._retries = retries
        self._options: Options = {"timeout": DEFAULT_TIMEOUT, **options}
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=None,
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=100),
            transport=transport,
        )

    async def predict(self, image: ImageLike, **options: Unpack[Options]) -> Answer:
        """The answer to one image.

        Raises:
            GateClientError: there is no answer to act on.
        """
        content = await load(image)
        chosen = self._chosen(options)
        request = self._http.build_request(
            "POST",
            with_options(self._url, chosen),
            content=content,
            headers={"Content-Type": BINARY},
        )
        (answer,) = await self._ask(request, 1, chosen["timeout"])
        return answer

    async def predict_many(
        self, images: Iterable[ImageLike], **options: Unpack[Options]
    ) -> list[Answer]:
        """The answers to many images, in order, with a request for each batch of up to 256.

        `timeout` holds for each request. An image that cannot be read is answered like the
        others: it abstains. If none of a batch can be read, that is a `StatusError`.

        Raises:
            GateClientError: a batch has no answer to act on.
        """
        chosen = self._chosen(options)
        return [
            answer
            for batch in batches([await load(image) for image in images])
            for answer in await self._batch(batch, chosen)
        ]

    async def gate(self, image: ImageLike, **options: Unpack[Options]) -> Answer:
        """The answer to one image; an abstention if there is none to act on."""
        try:
            return await self.predict(image, **options)
        except GateClientError as error:
            return abstention(error)

    async def gate_many(
        self, images: Iterable[ImageLike], **options: Unpack[Options]
    ) -> list[Answer]:
        """As `predict_many`; a batch without an answer to act on is a batch of abstentions."""
        chosen = self._chosen(options)
        answers: list[Answer] = []
        for batch in batches([await load(image) for image in images]):
            try:
                answers += await self._batch(batch, chosen)
            except GateClientError as error:
                answers += [abstention(error)] * len(batch)
        return answers

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _chosen(self, options: Options) -> Options:
        return {**self._options, **options}

    async def _batch(self, images: Sequence[bytes], chosen: Options) -> list[Answer]:
        files = [("files", (str(index), image, BINARY)) for index, image in enumerate(images)]
        request = self._http.build_request("POST", with_options(self._url, chosen), files=files)
        return await self._ask(request, len(images), chosen["timeout"])

    async def _ask(self, request: httpx.Request, count: int, seconds: float) -> list[Answer]:
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                reply = await self._send(request, deadline)
        except TimeoutError as error:
            raise DeadlineError(f"no answer within {seconds:g} s") from error
        return read_answers(reply, count, self._terms)

    async def _send(self, request: httpx.Request, deadline: float) -> Reply:
        for tried in range(self._retries):
            pause = FIRST_PAUSE * 2**tried
            try:
                reply = await self._try(request)
            except ConnectError:
                pass
            else:
                if reply.status != 503 or reply.retry_after is None:
                    return reply
                pause = reply.retry_after
                if asyncio.get_running_loop().time() + pause >= deadline:
                    return reply
            await asyncio.sleep(pause)
        return await self._try(request)

    async def _try(self, request: httpx.Request) -> Reply:
        try:
            response = await self._http.send(request, stream=True)
            try:
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise MalformedAnswerError(f"more than {MAX_ANSWER_BYTES} bytes")
            finally:
                await response.aclose()
        except httpx.TimeoutException as error:
            raise DeadlineError(_words(error)) from error
        except httpx.TransportError as error:
            raise ConnectError(_words(error)) from error
        except httpx.RequestError as error:
            raise MalformedAnswerError(_words(error)) from error
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, bytes(body))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
