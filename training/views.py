"""Images seen otherwise: turned, or framed as MNIST's digits are.

Turned images keep their labels and leave the training distribution by degrees. Framing takes a
trivial clue away: MNIST's digits fill 20 × 20 pixels, centred by mass in 28 × 28, and whatever
reaches the border is told from them by its border alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Images = NDArray[np.uint8]

BOX, FRAME = 20, 28


def rotate(images: Images, degrees: float) -> Images:
    """Images [N, H, W, C] turned anticlockwise about their centre, bilinear; outside is 0."""
    return np.stack(
        [
            _channels(
                _picture(image).rotate(degrees, Image.Resampling.BILINEAR),
                image.shape[2],
            )
            for image in images
        ]
    )


def frame(images: Images) -> Images:
    """Images [N, H, W, C] shrunk to 20 × 20 and centred by mass in 28 × 28, [N, 28, 28, C].

    Each is resized by area to the box, laid on black, and shifted by whole pixels until its centre
    of mass, over all channels, is nearest to (13.5, 13.5), as MNIST was made (LeCun et al. 1998).
    An image without mass stays in the middle.
    """
    boxes = np.stack(
        [
            _channels(_picture(image).resize((BOX, BOX), Image.Resampling.BOX), image.shape[2])
            for image in images
        ]
    )
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


def _offsets(boxes: Images) -> NDArray[np.int64]:
    """Whole pixels down and right that bring each centre of mass to the middle of its box."""
    mass = boxes.sum(axis=3, dtype=np.float64)
    total = mass.sum(axis=(1, 2))
    steps = np.arange(BOX) - (BOX - 1) / 2
    moments = np.stack([mass.sum(axis=2) @ steps, mass.sum(axis=1) @ steps], axis=1)
    centres = moments / np.where(total > 0, total, 1.0)[:, None]
    return -np.rint(centres).astype(np.int64)


def _picture(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _channels(picture: Image.Image, channels: int) -> NDArray[np.uint8]:
    pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], channels)
