"""Any folder of images, one sub-folder a class: `cats/1.png`, `dogs/1.png` ..."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from training.data.dataset import DataError, Dataset, from_arrays

MAX_PIXELS = 1 << 24
"""Largest image that is decoded, in pixels; checked from the header before decoding."""

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

_FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def load_folder(
    path: Path, channels: Literal[1, 3] = 1, size: tuple[int, int] | None = None
) -> Dataset:
    """Read a folder with one sub-folder of images for each class.

    Classes are sorted by name, images by file name within their class. Files and folders whose
    name starts with a dot are passed over, as are files beside the class folders that are no
    images. Anything else that is not a readable image is an error: no image is dropped silently.

    Grey (`channels` 1) is Pillow's "L", the ITU-R 601 luma. JPEG orientation tags are applied.
    Images are never resized.

    Args:
        path: the folder.
        channels: 1 for grey, 3 for RGB; every image is converted to it.
        size: (height, width) that every image must have; by default that of the first.

    Returns:
        The data set, named after the folder.

    Raises:
        DataError: no such folder, no class, a class without images, a file that is no image of an
            accepted kind (BMP, JPEG, PNG, WebP; one frame; 8 bits a channel; opaque), more than
            `MAX_PIXELS`, or a size unlike the others. Names the first offender.
    """
    if channels not in (1, 3):
        raise DataError(f"channels is {channels}: give 1 for grey or 3 for RGB")
    folders = _class_folders(path)
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        for file in _image_files(folder):
            pixels = _read_image(file, channels)
            size = pixels.shape[:2] if size is None else size
            if pixels.shape[:2] != tuple(size):
                height, width = pixels.shape[:2]
                raise DataError(
                    f"{file} is {height} high and {width} wide, not {size[0]} by {size[1]}: resize "
                    "it, all images must have one size"
                )
            images.append(pixels)
            labels.append(label)
    return from_arrays(
        np.stack(images),
        np.array(labels, dtype=np.int64),
        [folder.name for folder in folders],
        name=path.resolve().name,
    )


def _entries(folder: Path) -> list[Path]:
    try:
        visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}): check the path") from error
    return sorted(visible, key=lambda entry: entry.name)


def _class_folders(path: Path) -> list[Path]:
    entries = _entries(path)
    for entry in entries:
        if entry.is_file() and entry.suffix.lower() in SUFFIXES:
            raise DataError(f"{entry} is outside a class: move it into a folder named after one")
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        raise DataError(f"{path} has no class folders: put each class's images in one")
    return folders


def _image_files(folder: Path) -> list[Path]:
    files = _entries(folder)
    if not files:
        raise DataError(f"{folder} is an empty class: add images or remove the folder")
    for file in files:
        if not file.is_file() or file.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{file} is not one of {' '.join(SUFFIXES)}: convert it or move it out of the class"
            )
    return files


def _read_image(file: Path, channels: int) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=_FORMATS)
        with image:
            _check_header(file, image)
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                _check_opaque(file, upright)
                upright = upright.convert("RGBA")
            pixels = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file} has more than {MAX_PIXELS} pixels: make the image smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{file} is not a {', '.join(_FORMATS)} image: replace it or move it out of the class"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file} cannot be decoded ({reason}): replace it") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _check_header(file: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{file} has more than {MAX_PIXELS} pixels: make the image smaller")
    if image.mode not in _MODES:
        raise DataError(
            f"{file} has pixels of kind {image.mode!r}: convert it to 8 bits a channel, grey or RGB"
        )
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{file} is animated: save one frame as an image")


def _check_opaque(file: Path, image: Image.Image) -> None:
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    if lowest != 255:
        raise DataError(f"{file} has transparent pixels: flatten it onto a background first")
