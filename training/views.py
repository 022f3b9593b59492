"""Images seen otherwise: turned, noisy, blurred or partly hidden, or framed as MNIST's digits are.

All but the framed keep their labels and leave the training distribution by degrees. Framing takes a
trivial clue away: MNIST's digits fill 20 × 20 pixels, centred by mass in 28 × 28, and whatever
reaches the border is told from them by its border alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from models.preprocessing import background

Images = NDArray[np.uint8]

BOX, FRAME = 20, 28


def rotate(images: Images, degrees: float) -> Images:
    """Images [N, H, W, C] turned anticlockwise about their centre, bilinear; outside is 0."""
    return redraw(images, lambda picture: picture.rotate(degrees, Image.Resampling.BILINEAR))


def add_noise(images: Images, std: float, seed: int) -> Images:
    """Images [N, H, W, C] with Gaussian noise of `std` × 255 on each value, rounded and clipped."""
    noise = np.random.default_rng(seed).standard_normal(images.shape, dtype=np.float32)
    return np.clip(np.rint(images + 255 * std * noise), 0, 255).astype(np.uint8)


def blur(images: Images, std: float) -> Images:
    """Images [N, H, W, C] blurred by a Gaussian of `std` × H pixels, as Pillow approximates it."""
    gaussian = ImageFilter.GaussianBlur(std * images.shape[1])
    return redraw(images, lambda picture: picture.filter(gaussian))


def occlude(images: Images, side: float, seed: int) -> Images:
    """Images [N, H, W, C], each with a square of `side` × H pixels hidden at a random place.

    The square lies within the image, so that its side must be at most W, and has the colour of the
    background, the median of the border.
    """
    count, height, width, _ = images.shape
    edge, randomness = round(side * height), np.random.default_rng(seed)
    top = randomness.integers(height - edge + 1, size=(count, 1))
    left = randomness.integers(width - edge + 1, size=(count, 1))
    rows, columns = np.arange(height) - top, np.arange(width) - left
    high, wide = ((steps >= 0) & (steps < edge) for steps in (rows, columns))
    hidden = high[:, :, None, None] & wide[:, None, :, None]
    return np.where(hidden, background(images).astype(np.uint8), images)


def frame(images: Images) -> Images:
    """Images [N, H, W, C] shrunk to 20 × 20 and centred by mass in 28 × 28, [N, 28, 28, C].

    Each is resized by area to the box, laid on black, and shifted by whole pixels until its centre
    of mass, over all channels, is nearest to (13.5, 13.5), as MNIST was made (LeCun et al. 1998).
    An image without mass stays in the middle.
    """
    boxes = redraw(images, lambda picture: picture.resize((BOX, BOX), Image.Resampling.BOX))
    room = np.zeros((len(boxes), *(2 * FRAME,) * 2, boxes.shape[3]), dtype=np.uint8)
    start = FRAME - BOX // 2
    room[:, start : start + BOX, start : start + BOX] = boxes
    corners = start - (FRAME - BOX) // 2 - _offsets(boxes)
    return np.stack(
        [
            canvas[top : top + FRAME, left : left + FRAME]
            for canvas, (top, left) in zip(room, corners, strict=True)
        ]
    )


def redraw(images: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    """Images [N, H, W, C], each changed as a picture."""
    grey = images.shape[3] == 1
    pictures = images[..., 0] if grey else images
    changed = np.stack([np.asarray(change(Image.fromarray(pixels))) for pixels in pictures])
    return changed[..., None] if grey else changed


def _offsets(boxes: Images) -> NDArray[np.int64]:
    """Whole pixels down and right that bring each centre of mass to the middle of its box."""
    mass = boxes.sum(axis=3, dtype=np.float64)
    total = mass.sum(axis=(1, 2))
    steps = np.arange(BOX) - (BOX - 1) / 2
    moments = np.stack([mass.sum(axis=2) @ steps, mass.sum(axis=1) @ steps], axis=1)
    centres = moments / np.where(total > 0, total, 1.0)[:, None]
    return -np.rint(centres).astype(np.int64)
