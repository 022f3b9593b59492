from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import GateError, InvalidError, TooLargeError, UnsupportedMediaError
from service.images import Target, decode, open_image
from service.png import PlainPng, read_plain, unpack

TARGET = Target(height=8, width=8)
MAX_PIXELS = 1_000_000


def read(data: bytes):
    image = open_image(data, MAX_PIXELS)
    return decode(image, image.size, TARGET)


def from_array(pixels: np.ndarray):
    image = Image.fromarray(pixels)
    return decode(image, image.size, TARGET)


def gradient(height: int = 8, width: int = 12) -> np.ndarray:
    return np.arange(height * width, dtype=np.uint8).reshape(height, width)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png_header(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_lossless_formats(encode, form):
    options = {"lossless": True} if form == "WEBP" else {}
    picture = read(encode(gradient(), form, **options))
    assert (picture.width, picture.height) == (12, 8)
    assert picture.pixels[0, :, :, 0].tolist() == gradient().tolist()


def test_jpeg(encode):
    picture = read(encode(gradient(), "JPEG", quality=95))
    assert picture.pixels.shape == (1, 8, 12, 1)
    assert np.abs(picture.pixels[0, :, :, 0].astype(int) - gradient()).max() < 16


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_orientation(encode, orientation, form):
    rows = np.zeros((16, 24), dtype=np.uint8)
    rows[:8, :8] = 255
    upright = Image.fromarray(rows)
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read(encode(stored, form, exif=exif))
    assert (picture.width, picture.height) == (24, 16)
    assert picture.pixels.shape == (1, 16, 24, 1)
    assert np.abs(picture.pixels[0, :, :, 0].astype(int) - rows).max() < 40
    assert ("orient" in picture.applied) == (orientation > 1)


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 2), ("P", 3), ("RGB", 3), ("RGBA", 4)],
)
def test_modes(encode, mode, channels):
    picture = read(encode(Image.fromarray(gradient()).convert("RGB").convert(mode)))
    assert picture.mode == mode
    assert picture.pixels.shape == (1, 8, 12, channels)
    assert picture.pixels.dtype == np.uint8


def test_one_bit_is_black_and_white(encode):
    rows = np.eye(8, dtype=bool)
    picture = read(encode(Image.fromarray(rows)))
    assert picture.pixels[0, :, :, 0].tolist() == (255 * rows).tolist()


def test_sixteen_bits_are_scaled(encode):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    picture = read(encode(Image.fromarray(values)))
    assert picture.mode == "I;16"
    assert picture.pixels[0, :, :, 0].tolist() == [[0, 0, 1, 1, 128, 255]]


def test_transparency_of_palettes_and_keys(encode):
    palette = Image.fromarray(gradient()).convert("P")
    assert read(encode(palette, transparency=0)).pixels.shape[3] == 4
    keyed = read(encode(Image.fromarray(gradient()), transparency=5))
    assert keyed.pixels.shape[3] == 2
    assert keyed.pixels[0, :, :, 1].ravel().tolist() == [255 * (i != 5) for i in range(96)]


@pytest.mark.parametrize(
    ("form", "options"),
    [("GIF", {}), ("TIFF", {}), ("ICO", {}), ("PDF", {}), ("AVIF", {})],
)
def test_other_formats_are_named(encode, form, options):
    with pytest.raises(UnsupportedMediaError, match=form):
        read(encode(Image.fromarray(gradient(64, 64)).convert("RGB"), form, **options))


@pytest.mark.parametrize("data", [b"<svg xmlns=''/>", b"<?xml version='1.0'?>\n<svg/>"])
def test_svg_is_named(data):
    with pytest.raises(UnsupportedMediaError, match="SVG"):
        read(data)


def test_cmyk_is_refused(encode):
    with pytest.raises(InvalidError, match="CMYK"):
        read(encode(Image.new("CMYK", (8, 8)), "JPEG"))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animations_are_refused(encode, form):
    frames = [Image.fromarray(gradient() + shift).convert("RGB") for shift in (0, 50)]
    with pytest.raises(InvalidError, match="animated"):
        read(encode(frames[0], form, save_all=True, append_images=frames[1:]))


def test_a_phones_photo_with_a_second_picture_in_it(encode):
    frames = [Image.fromarray(gradient(32, 32)), Image.fromarray(gradient(16, 16))]
    picture = read(encode(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert (picture.width, picture.height) == (32, 32)


def test_nothing_and_nonsense():
    with pytest.raises(InvalidError, match="empty"):
        read(b"")
    with pytest.raises(InvalidError, match="no image"):
        read(b"These are words, whatever their name ends in.")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_cut_short(encode, form, share):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(noise, form)
    with pytest.raises(InvalidError, match="damaged or cut short"):
        read(data[: int(share * len(data))])


def test_a_checksum_that_does_not_match(encode):
    data = bytearray(encode(gradient()))
    data[data.index(b"IDAT") + 6] ^= 0xFF
    with pytest.raises(InvalidError, match="damaged"):
        read(bytes(data))


@pytest.mark.parametrize(("width", "height"), [(0, 8), (8, 0), (0, 0)])
def test_no_pixels(width, height):
    with pytest.raises(InvalidError):
        read(png_header(width, height) + png_chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [1_001, 15_000, 30_000, 2**31 - 1])
def test_too_many_pixels_are_refused_by_the_header(side):
    with pytest.raises(TooLargeError) as error:
        read(png_header(side, side) + png_chunk(b"IDAT", b""))
    assert error.value.limit == 1_000_000


def test_a_text_chunk_that_unpacks_to_too_much():
    bomb = png_chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(50_000_000)))
    with pytest.raises(InvalidError):
        read(png_header(8, 8) + bomb + png_chunk(b"IEND", b""))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_large_images_are_reduced_but_keep_their_look(encode, form):
    rows, columns = np.mgrid[0:600, 0:800]
    smooth = (127 + 60 * np.sin(rows / 90) + 60 * np.cos(columns / 70)).astype(np.uint8)
    picture = read(encode(smooth, form))
    assert (picture.width, picture.height) == (800, 600)
    assert picture.applied == ("reduce",)
    height, width = picture.pixels.shape[1:3]
    assert 8 * 8 <= max(height, width) <= 2 * 8 * 8 + 8
    assert height / width == pytest.approx(600 / 800, rel=0.05)
    expected = np.asarray(Image.fromarray(smooth).resize((width, height), Image.Resampling.BOX))
    assert np.abs(picture.pixels[0, :, :, 0].astype(int) - expected).max() < 8


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
def test_what_is_decoded_again_is_the_same(encode, form):
    """A step that failed is tried again; 600 x 800 pixels are reduced, by the decoder of a JPEG."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(np.resize(gradient(), (600, 800)), form, exif=exif)
    image = open_image(data, MAX_PIXELS)
    size = image.size
    first, second = decode(image, size, TARGET), decode(image, size, TARGET)
    assert first.pixels.tobytes() == second.pixels.tobytes()
    assert first._replace(pixels=second.pixels) == second
    assert "reduce" in first.applied


def test_numbers_are_reduced_alike():
    picture = from_array(np.zeros((300, 200, 3), dtype=np.uint8))
    assert (picture.width, picture.height, picture.mode) == (200, 300, "RGB")
    assert picture.applied == ("reduce",)
    assert from_array(gradient()).applied == ()


def test_extreme_shapes():
    assert from_array(np.zeros((1, 900_000), dtype=np.uint8)).pixels.size < 1000
    assert from_array(np.zeros((900_000, 1), dtype=np.uint8)).pixels.size < 1000


def _samples() -> list[bytes]:
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    samples = []
    for form in ("PNG", "JPEG", "WEBP", "BMP"):
        buffer = io.BytesIO()
        noise.save(buffer, form)
        samples.append(buffer.getvalue())
    return samples


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    sample=st.sampled_from(_samples()),
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 10_000),
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_are_read_or_refused(sample, edits, cut):
    data = bytearray(sample)
    for place, value in edits:
        data[place % len(data)] = value
    data = data[: max(1, cut % (2 * len(data)))]
    try:
        picture = read(bytes(data))
    except GateError:
        return
    assert picture.pixels.ndim == 4


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image).reshape(1, image.height, image.width, -1)


def rows_of_every_filter(width: int, channels: int, seed: int) -> bytes:
    """Noise of ten rows, two of each of PNG's filters."""
    noise = np.random.default_rng(seed).integers(0, 256, (10, width * channels), dtype=np.uint8)
    return b"".join(bytes([index % 5]) + row.tobytes() for index, row in enumerate(noise))


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3)])
@pytest.mark.parametrize("width", [1, 28, 33])
def test_a_plain_png_has_the_pixels_that_pillow_finds(colour, channels, width):
    rows = zlib.compress(rows_of_every_filter(width, channels, seed=3))
    data = png_header(width, 10, colour=colour) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    assert isinstance(open_image(data, MAX_PIXELS), PlainPng)
    picture = decode(open_image(data, MAX_PIXELS), (width, 10), Target(10, width))
    assert np.array_equal(picture.pixels, by_pillow(data))
    assert (picture.width, picture.height, picture.applied) == (width, 10, ())
    assert picture.mode == {1: "L", 3: "RGB"}[channels]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_plain_png_is_reduced_as_pillow_reduces_it(encode, channels):
    pixels = np.random.default_rng(5).integers(0, 256, (150, 100, channels), dtype=np.uint8)
    image = Image.fromarray(pixels.squeeze())
    data = encode(image)
    assert isinstance(open_image(data, MAX_PIXELS), PlainPng)
    plain, by_another_way = read(data), decode(image, image.size, TARGET)
    assert plain.applied == by_another_way.applied == ("reduce",)
    assert np.array_equal(plain.pixels, by_another_way.pixels)


def test_what_is_not_plain_is_left_to_pillow(encode):
    grey, header, end = gradient(), png_header(12, 8), png_chunk(b"IEND", b"")
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in grey))
    pixels = png_chunk(b"IDAT", rows)
    others = {
        "text": header + png_chunk(b"tEXt", b"a\0b") + pixels + end,
        "two parts": header + png_chunk(b"IDAT", rows[:9]) + png_chunk(b"IDAT", rows[9:]) + end,
        "more behind": header + pixels + end + b"\0",
        "transparency": header + png_chunk(b"tRNS", b"\0\0") + pixels + end,
        "16 bits": encode(Image.fromarray(grey.astype(np.uint16) * 257)),
        "a palette": encode(Image.fromarray(grey).convert("P")),
        "opacity": encode(Image.fromarray(grey).convert("LA")),
        "bits": encode(Image.fromarray(grey > 50)),
    }
    assert read_plain(header + pixels + end) is not None
    for name, data in others.items():
        assert read_plain(data) is None, name
        assert read(data).pixels.shape[:3] == (1, 8, 12), name


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_plain_png_is_judged_as_pillow_judges_it(data):
    rows = zlib.compress(rows_of_every_filter(12, 1, seed=4))
    file = bytearray(png_header(12, 10) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b""))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(file) - 1))
        file[place] = data.draw(st.integers(0, 255))
    file = file[: data.draw(st.integers(len(file) - 3, len(file)))]
    try:
        expected = by_pillow(bytes(file))
    except Exception:
        expected = None
    plain = read_plain(bytes(file))
    try:
        found = None if plain is None else unpack([plain])
    except ValueError:
        assert expected is None
    else:
        assert found is None or np.array_equal(found, expected)
