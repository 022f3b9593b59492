"""A request's body → the images in it, read as it arrives and never beyond the limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar, TypeVarTuple

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from service.errors import (
    Fault,
    InvalidError,
    MalformedError,
    TooLargeError,
    UnavailableError,
    UnsupportedMediaError,
)
from service.images import ACCEPTED, looks_like_image
from service.intake import Sent
from service.settings import Settings

# A body of so many bytes may be parsed on the event loop: a thread would take longer to reach.
SMALL_BYTES = 16 * 1024
FIELD = "files"
JSON = "application/json"
MULTIPART = "multipart/form-data"
BINARY = "application/octet-stream"
CURL = "application/x-www-form-urlencoded"
IMAGES = ("image/png", "image/jpeg", "image/webp", "image/bmp")


T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


@dataclass
class Buffers:
    """Bytes of all the bodies that are held now."""

    limit: int
    used: int = 0


@dataclass
class Upload:
    """One request's body. It occupies its share of the buffers until `release`."""

    request: Request
    settings: Settings
    buffers: Buffers
    threads: Executor
    size: int = field(default=0, init=False)

    async def images(self) -> list[Sent]:
        """The images in the body, in order.

        Raises:
            MalformedError: it is no JSON, or no multipart form.
            UnsupportedMediaError: its Content-Type is not accepted.
            TooLargeError: it has too many bytes or images.
            InvalidError: it holds no image, or fields that are not known.
            UnavailableError: too many bodies are being read.
        """
        headers = self._checked_headers()
        declared = headers.get(b"content-type", b"").decode("latin-1")
        media_type = declared.partition(";")[0].strip().lower()
        if media_type not in (JSON, MULTIPART, BINARY, "", *IMAGES):
            raise _unsupported(media_type)
        if media_type == MULTIPART:
            return await self._multipart()
        body = await self._read()
        if media_type == JSON:
            return await self.parse(_from_json, body, self.settings.max_images_per_request)
        if not media_type and body and not looks_like_image(body):
            raise UnsupportedMediaError(f"there is no Content-Type: send {_MEDIA_TYPES}")
        return [Sent(body, "/body")]

    async def body(self) -> bytes:
        """All of it, whatever it is.

        Raises:
            UnsupportedMediaError: it is compressed.
            TooLargeError: it has too many bytes.
            UnavailableError: too many bodies are being read.
        """
        self._checked_headers()
        return await self._read()

    async def parse(
        self, function: Callable[[bytes, *Arguments], T], body: bytes, *rest: *Arguments
    ) -> T:
        """What a function makes of a body; in a thread if it is large."""
        if len(body) <= SMALL_BYTES:
            return function(body, *rest)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, function, body, *rest)

    def release(self) -> None:
        """Give the bytes back."""
        self.buffers.used -= self.size
        self.size = 0

    def _checked_headers(self) -> dict[bytes, bytes]:
        headers = dict(self.request.scope["headers"])
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise UnsupportedMediaError("a compressed body is not accepted (Content-Encoding)")
        length = headers.get(b"content-length", b"").lstrip(b"0")
        most = self.settings.max_body_bytes
        if length.isdigit() and (len(length) > len(str(most)) or int(length) > most):
            raise _too_many_bytes(most)
        return headers

    async def _read(self) -> bytes:
        chunk, more = await self._receive()
        if not more:
            return chunk
        chunks = [chunk]
        while more:
            chunk, more = await self._receive()
            chunks.append(chunk)
        return b"".join(chunks)

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        more = True
        while more:
            chunk, more = await self._receive()
            yield chunk

    async def _receive(self) -> tuple[bytes, bool]:
        """Some bytes of the body, and whether there are more."""
        message = await self.request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        self.size += len(chunk)
        self.buffers.used += len(chunk)
        if self.size > self.settings.max_body_bytes:
            raise _too_many_bytes(self.settings.max_body_bytes)
        if self.buffers.used > self.buffers.limit:
            raise UnavailableError("too many bodies are being read", retry_after=1)
        return chunk, message.get("more_body", False)

    async def _multipart(self) -> list[Sent]:
        most = self.settings.max_images_per_request
        parser = _InMemory(self.request.headers, self._chunks(), most)
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if error.message.startswith("Too many files"):
                raise _too_many_images(most) from error
            if error.message.startswith("Too many fields"):
                raise InvalidError(f'every part must be a file in field "{FIELD}"') from error
            raise MalformedError(f"the multipart form cannot be parsed: {error.message}") from error
        try:
            parts = form.multi_items()
            sent = [_sent(name, part, index) for index, (name, part) in enumerate(parts)]
        finally:
            await form.close()
        if not sent:
            raise InvalidError("the form holds no image").at("/body")
        return sent


class _InMemory(MultiPartParser):
    """Starlette's parser, without its temporary files: `max_body_bytes` bounds the memory."""

    spool_max_size = 2**62

    def __init__(
        self, headers: Headers, stream: AsyncGenerator[bytes, None], max_files: int
    ) -> None:
        super().__init__(headers, self._whole(stream), max_files=max_files, max_fields=0)
        self.complete = False

    def on_end(self) -> None:
        """The closing boundary was met; without it, parts may be missing."""
        self.complete = True

    async def _whole(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self.complete:
            raise MultiPartException("it is cut short")


def _sent(name: str, part: UploadFile | str, index: int) -> Sent:
    if name != FIELD or isinstance(part, str):
        shown, message = name[:64], f'is not known: name the field "{FIELD}"'
        raise InvalidError(f"field {shown!r} {message}", Fault(f"/body/{shown}", message))
    return Sent(part.file.read(), f"/body/{FIELD}/{index}")


def _from_json(body: bytes, most: int) -> list[Sent]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MalformedError(f"the body is not JSON: {reason}") from error
    if not isinstance(document, dict):
        raise InvalidError('the body must be an object: {"images": [...]}').at("/body")
    if unknown := sorted(set(document) - {"images"}):
        name = unknown[0][:64]
        raise InvalidError(f'{name!r} is not known: use "images"').at(f"/body/{name}")
    items = document.get("images")
    if not isinstance(items, list) or not items:
        raise InvalidError("images must be a list, and not empty").at("/body/images")
    if len(items) > most:
        raise _too_many_images(most)
    return [Sent(item, f"/body/images/{index}") for index, item in enumerate(items)]


_MEDIA_TYPES = f"{ACCEPTED} with its image/... type, {JSON} or {MULTIPART}"


def _unsupported(media_type: str) -> UnsupportedMediaError:
    hint = " (curl needs -H 'Content-Type: image/png')" if media_type == CURL else ""
    return UnsupportedMediaError(f"{media_type[:64]!r} is not accepted: send {_MEDIA_TYPES}{hint}")


def _too_many_bytes(limit: int) -> TooLargeError:
    return TooLargeError(f"the body exceeds {limit} bytes", limit=limit).at("/body")


def _too_many_images(limit: int) -> TooLargeError:
    return TooLargeError(f"more than {limit} images in one request", limit=limit).at("/body")
