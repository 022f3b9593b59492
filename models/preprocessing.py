"""Decoded image → the network's input: the one implementation that training and serving share.

The rule, in order; each step that changed something is named in `applied`:

1. `alpha`      transparency is laid over white;
2. `grey`/`rgb` colours become luma .299 R + .587 G + .114 B (ITU-R BT.601), or grey is repeated;
3. `invert`     with polarity "light-on-dark", an image whose border is mostly bright (median of the
                outermost pixels above 127.5) is turned to its negative;
4. `resize`     the image is scaled, its aspect kept, until it just fits the network's input
                (triangle filter, widened when shrinking so that no pixel is skipped);
5. `pad`        it is centred, and the rest filled with the median of its border;
6. pixels / 255 are standardised with the manifest's mean and standard deviation.

An image that already has the input's size and mode passes steps 1-5 untouched.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Floats = NDArray[np.float32]

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class InputSpec(BaseModel):
    """What the network expects of an image.

    `polarity` is "light-on-dark" when bright strokes on a dark ground were learned, so that dark
    strokes on paper are inverted, and "as-is" when the image must not be touched.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: Literal[1, 3]
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    polarity: Literal["light-on-dark", "as-is"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Self:
        values = np.array([*self.mean, *self.std])
        if not len(self.mean) == len(self.std) == self.channels or not np.isfinite(values).all():
            raise ValueError("mean and std need one finite value a channel")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.height, self.width


def prepare(images: NDArray[np.uint8], spec: InputSpec) -> tuple[Floats, list[tuple[str, ...]]]:
    """Bring N images of one size and mode to the network's input.

    Args:
        images: pixels [N, h, w, c], c = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).
        spec: the network's input.

    Returns:
        The tensor [N, C, H, W] and, per image, the names of the steps that changed it.
    """
    pixels, steps = _to_channels(images.astype(np.float32), spec.channels)
    inverted = np.zeros(len(pixels), dtype=bool)
    if spec.polarity == "light-on-dark":
        inverted = _median(_border(pixels).reshape(len(pixels), -1)) > 127.5
        if inverted.any():
            pixels[inverted] = 255.0 - pixels[inverted]
    pixels, geometry = _letterbox(pixels, spec.height, spec.width)
    applied = [(*steps, *(("invert",) if flag else ()), *geometry) for flag in inverted]
    mean = np.asarray(spec.mean, dtype=np.float32)
    std = np.asarray(spec.std, dtype=np.float32)
    tensor = (pixels / np.float32(255) - mean) / std
    return np.ascontiguousarray(tensor.transpose(0, 3, 1, 2)), applied


def grey(images: Floats, spec: InputSpec) -> Floats:
    """Prepared images [N, C, H, W] as grey values from 0 to 1, [N, H, W]; colours become luma."""
    if spec.channels == 1:
        return images[:, 0] * np.float32(spec.std[0]) + np.float32(spec.mean[0])
    scale = LUMA * np.asarray(spec.std, dtype=np.float32)
    shift = np.float32(LUMA @ np.asarray(spec.mean, dtype=np.float32))
    values: Floats = np.einsum("nchw,c->nhw", images, scale, dtype=np.float32) + shift
    return values


def _to_channels(pixels: Floats, channels: int) -> tuple[Floats, tuple[str, ...]]:
    steps: tuple[str, ...] = ()
    if pixels.shape[3] in (2, 4):
        opacity = pixels[..., -1:] / np.float32(255)
        pixels = pixels[..., :-1] * opacity + 255 * (1 - opacity)
        steps += ("alpha",)
    if pixels.shape[3] == 3 and channels == 1:
        return (pixels @ LUMA)[..., None], (*steps, "grey")
    if pixels.shape[3] == 1 and channels == 3:
        return pixels.repeat(3, axis=3), (*steps, "rgb")
    return pixels, steps


def background(pixels: NDArray[Any]) -> NDArray[np.floating]:
    """The median of the border of each of N images [N, h, w, C], by channel, [N, 1, 1, C]."""
    return _median(_border(pixels))[:, None, None, :]


def _median(values: NDArray[Any]) -> NDArray[np.floating]:
    """The median of finite values over axis 1; np.median does the same, but takes longer."""
    ascending, middle = np.sort(values, axis=1), values.shape[1] // 2
    either = ascending[:, middle - 1 + values.shape[1] % 2 : middle + 1]
    median: NDArray[np.floating] = either.mean(axis=1)
    return median


def _border(pixels: NDArray[Any]) -> NDArray[Any]:
    """The outermost pixels [N, n, C] of images [N, h, w, C]."""
    count, height, width, channels = pixels.shape
    flat = pixels.reshape(count, height * width, channels)
    return flat.take(_outermost(height, width), axis=1)


@lru_cache(maxsize=64)
def _outermost(height: int, width: int) -> NDArray[np.int64]:
    inside = np.zeros((height, width), dtype=bool)
    inside[1:-1, 1:-1] = True
    return np.flatnonzero(~inside)


def _letterbox(pixels: Floats, height: int, width: int) -> tuple[Floats, tuple[str, ...]]:
    h, w = pixels.shape[1:3]
    if (h, w) == (height, width):
        return pixels, ()
    scale = min(height / h, width / w)
    inner_h = min(height, max(1, round(h * scale)))
    inner_w = min(width, max(1, round(w * scale)))
    ground = background(pixels)
    steps: tuple[str, ...] = ()
    if (inner_h, inner_w) != (h, w):
        pixels = np.einsum("ih,nhwc->niwc", _resampling(h, inner_h), pixels, optimize=True)
        pixels = np.einsum("jw,niwc->nijc", _resampling(w, inner_w), pixels, optimize=True)
        steps += ("resize",)
    if (inner_h, inner_w) != (height, width):
        top, left = (height - inner_h) // 2, (width - inner_w) // 2
        canvas = np.broadcast_to(ground, (len(pixels), height, width, pixels.shape[3])).copy()
        canvas[:, top : top + inner_h, left : left + inner_w] = pixels
        pixels = canvas
        steps += ("pad",)
    return pixels.astype(np.float32, copy=False), steps


@lru_cache(maxsize=64)
def _resampling(size: int, target: int) -> Floats:
    """Triangle-filter weights [target, size]; each row sums to 1."""
    ratio = size / target
    centres = (np.arange(target) + 0.5) * ratio - 0.5
    distance = np.abs(np.arange(size) - centres[:, None]) / max(1.0, ratio)
    weights = np.maximum(0.0, 1.0 - distance)
    result: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return result
