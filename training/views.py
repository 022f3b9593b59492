"""Images seen otherwise: turned, or framed as MNIST's digits are.

Turned images keep their labels and leave the training distribution by degrees. Framing takes a
trivial clue away: MNIST's digits fill 20 × 20 pixels, centred by mass in 28 × 28, and whatever
reaches the border is told from them by its border alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Images = NDArray[np.uint8]

BOX, FRAME = 20, 28


def rotate(images: Images, degrees: float) -> Images:
    """Images [N, H, W, C] turned anticlockwise about their centre, bilinear; outside is 0."""
    return redraw(images, lambda picture: picture.rotate(degrees, Image.Resampling.BILINEAR))


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
