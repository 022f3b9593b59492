from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from training.data import DataError, load_folder


@pytest.fixture
def letters(samples: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(samples / "letters", tmp_path / "letters"))


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and breaks off where its pixels begin."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT" + b"\x78"


def test_real_letters_in_grey(letters: Path) -> None:
    dataset = load_folder(letters, size=(28, 28))
    assert dataset.name == "letters"
    assert dataset.classes == ("A", "B", "C")
    assert dataset.images.shape == (9, 28, 28, 1)
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with Image.open(letters / "B" / "1.png") as image:
        assert np.array_equal(dataset.images[4, :, :, 0], np.asarray(image))


def test_colour_repeats_grey(letters: Path) -> None:
    grey, colour = load_folder(letters, 1), load_folder(letters, 3)
    assert colour.images.shape == (9, 28, 28, 3)
    assert np.array_equal(colour.images, np.repeat(grey.images, 3, axis=3))


def test_kinds_of_images_and_modes_mix(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "class"
    folder.mkdir(parents=True)
    red = Image.new("RGB", (4, 3), (255, 0, 0))
    red.save(folder / "a.PNG")
    red.save(folder / "b.bmp")
    red.save(folder / "c.webp", lossless=True)
    red.quantize(2).save(folder / "d.png")
    red.convert("RGBA").save(folder / "e.png")
    Image.new("1", (4, 3), 1).save(folder / "f.png")
    red.save(folder / "g.jpg", quality=95)
    colour = load_folder(tmp_path / "set", 3)
    assert colour.images.shape == (7, 3, 4, 3)
    assert (colour.images[:5] == (255, 0, 0)).all()
    assert (colour.images[5] == 255).all()
    assert np.abs(colour.images[6].astype(int) - (255, 0, 0)).max() < 5
    assert (load_folder(tmp_path / "set", 1).images[:5] == 76).all()


def test_orientation_tag_of_a_photo_is_applied(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.new("L", (5, 3)).save(tmp_path / "class" / "a.jpg", exif=tag)
    assert load_folder(tmp_path).images.shape == (1, 5, 3, 1)


def test_hidden_and_neighbouring_files_are_passed_over(letters: Path) -> None:
    (letters / "README.txt").write_text("about")
    (letters / ".hidden").mkdir()
    (letters / "A" / ".DS_Store").write_bytes(b"\0")
    assert len(load_folder(letters)) == 9


def test_first_image_of_another_size_is_named(letters: Path) -> None:
    Image.new("L", (28, 27)).save(letters / "B" / "0.png")
    Image.new("L", (5, 5)).save(letters / "C" / "0.png")
    with pytest.raises(DataError, match=r"B/0\.png is 27 high and 28 wide, not 28 by 28"):
        load_folder(letters)
    with pytest.raises(DataError, match=r"A/0\.png is 28 high and 28 wide, not 27 by 28"):
        load_folder(letters, size=(27, 28))


def test_missing_empty_and_misplaced(letters: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere cannot be listed \(No such file"):
        load_folder(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="has no class folders"):
        load_folder(tmp_path / "bare")
    with pytest.raises(DataError, match=r"A/0\.png is outside a class"):
        load_folder(letters / "A")
    (letters / "D").mkdir()
    with pytest.raises(DataError, match="D is an empty class"):
        load_folder(letters)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.png", b"not an image", "is not a BMP, JPEG, PNG, WEBP image"),
        ("x.png", b"", "is not a BMP, JPEG, PNG, WEBP image"),
        ("x.png", b"GIF89a\1\0\1\0\0\0\0", "is not a BMP, JPEG, PNG, WEBP image"),
        ("x.png", png_header(28, 28), "cannot be decoded"),
        ("x.png", png_header(5000, 5000), "more than 16777216 pixels"),
        ("x.png", png_header(10000, 10000), "more than 16777216 pixels"),
        ("x.png", png_header(30000, 30000), "more than 16777216 pixels"),
        ("x.gif", b"GIF89a", "is not one of .bmp"),
        ("notes.txt", b"notes", "is not one of .bmp"),
    ],
)
def test_files_that_are_no_images_are_named(
    letters: Path, name: str, content: bytes, says: str
) -> None:
    (letters / "B" / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        load_folder(letters)
    assert str(letters / "B" / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_image_is_named(letters: Path) -> None:
    path = letters / "C" / "2.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"C/2\.png cannot be decoded"):
        load_folder(letters)


def test_pixels_that_would_lose_their_meaning_are_refused(letters: Path) -> None:
    path = letters / "A" / "x.png"
    Image.fromarray(np.full((28, 28), 40000, dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match="8 bits a channel"):
        load_folder(letters)
    Image.new("LA", (28, 28), (255, 254)).save(path)
    with pytest.raises(DataError, match="transparent pixels"):
        load_folder(letters)
    Image.new("L", (28, 28)).save(path, transparency=0)
    with pytest.raises(DataError, match="transparent pixels"):
        load_folder(letters)
    path.unlink()
    frames = [Image.new("L", (28, 28), level) for level in (0, 255)]
    frames[0].save(letters / "A" / "x.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="animated"):
        load_folder(letters)


def test_unreadable_file_is_named(letters: Path) -> None:
    path = letters / "A" / "dangling.png"
    path.symlink_to(letters / "nowhere.png")
    with pytest.raises(DataError, match=r"dangling\.png"):
        load_folder(letters)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_channels_are_one_or_three(letters: Path, channels: Literal[1, 3]) -> None:
    with pytest.raises(DataError, match="give 1 for grey or 3 for RGB"):
        load_folder(letters, channels)
