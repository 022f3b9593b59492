"""Images as callers have them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from service.client import images
from service.client.images import batches, image_bytes


@pytest.mark.parametrize(
    ("shape", "mode"),
    [((5, 7), "L"), ((5, 7, 1), "L"), ((5, 7, 2), "LA"), ((5, 7, 3), "RGB"), ((5, 7, 4), "RGBA")],
)
def test_pixels_become_a_png_that_loses_nothing(shape, mode):
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    for stored in (pixels, np.asfortranarray(pixels), pixels[::-1, ::2]):
        with Image.open(io.BytesIO(image_bytes(stored))) as picture:
            picture.load()
            assert (picture.format, picture.mode) == ("PNG", mode)
            np.testing.assert_array_equal(
                np.asarray(picture), stored.reshape(*picture.size[::-1], -1).squeeze()
            )


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), dtype=np.float32),
        np.zeros((4, 4), dtype=np.int8),
        np.zeros((4, 4, 5), dtype=np.uint8),
        np.zeros((2, 4, 4, 1), dtype=np.uint8),
        np.zeros((0, 4), dtype=np.uint8),
        np.array(3, dtype=np.uint8),
    ],
)
def test_other_arrays_are_refused(pixels):
    with pytest.raises(ValueError, match="pixels must be uint8"):
        image_bytes(pixels)


def test_files_are_read_and_bytes_are_left_alone(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"content")
    for image in (b"content", bytearray(b"content"), memoryview(b"content"), path, str(path)):
        assert image_bytes(image) == b"content"
    with pytest.raises(FileNotFoundError):
        image_bytes(tmp_path / "none")
    with pytest.raises(TypeError):
        image_bytes(7)


def test_batches_hold_what_the_service_takes(monkeypatch):
    assert list(batches([])) == []
    assert list(map(len, batches([b"x"] * 513))) == [256, 256, 1]
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    sent = [b"1234", b"123456", b"1", b"12345678901234", b"12", b""]
    assert list(batches(sent)) == [sent[:2], sent[2:3], sent[3:4], sent[4:]]
