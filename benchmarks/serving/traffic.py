"""What is sent: MNIST test images with 5 % notMNIST letters, as HTTP requests ready to send."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from training.data import load

IMAGES = 2_000
LETTERS = 0.05
SEED = 1
BOUNDARY = "7d1b0a5e"
PNG = "image/png"


def images(data_dir: Path) -> list[bytes]:
    """2,000 PNGs of 28 × 28 grey pixels, in a fixed order."""
    randomness = np.random.default_rng(SEED)
    letters = round(LETTERS * IMAGES)
    chosen = [
        load(name, "test", data_dir).images[randomness.choice(10_000, count, replace=False)]
        for name, count in (("mnist", IMAGES - letters), ("notmnist", letters))
    ]
    return [to_png(image) for image in randomness.permutation(np.concatenate(chosen))]


def single(path: str, pngs: Iterable[bytes]) -> list[bytes]:
    """Requests of one image as the raw body."""
    return [_request(path, PNG, png) for png in pngs]


def multipart(path: str, pngs: Sequence[bytes], size: int) -> list[bytes]:
    """Requests of `size` images as a form, every image once."""
    return [
        _request(path, f"multipart/form-data; boundary={BOUNDARY}", _form(pngs[start:][:size]))
        for start in range(0, len(pngs) - size + 1, size)
    ]


def save(requests: Iterable[bytes], file: Path) -> Path:
    """Write requests, each after a line with its length."""
    file.write_bytes(b"".join(b"%d\n%s" % (len(request), request) for request in requests))
    return file


def to_png(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image[..., 0]).save(stream, "PNG")
    return stream.getvalue()


def _request(path: str, kind: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _form(pngs: Iterable[bytes]) -> bytes:
    parts = [
        f"--{BOUNDARY}\r\n"
        f'Content-Disposition: form-data; name="files"; filename="{index}.png"\r\n'
        f"Content-Type: {PNG}\r\n\r\n".encode()
        + png
        + b"\r\n"
        for index, png in enumerate(pngs)
    ]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
