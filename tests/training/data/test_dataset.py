from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data import DataError, from_arrays

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
LABELS = np.array([1, 0])


def test_grey_images_get_a_channel_axis_and_labels_become_int64() -> None:
    dataset = from_arrays(IMAGES, LABELS.astype(np.uint8), ["no", "yes"], name="tiny")
    assert dataset.images.shape == (2, 3, 4, 1)
    assert dataset.labels.dtype == np.int64
    assert dataset.classes == ("no", "yes")
    assert len(dataset) == 2


def test_digest_is_that_of_the_documented_bytes() -> None:
    dataset = from_arrays(IMAGES, LABELS, ["no", "yes"])
    content = IMAGES.tobytes() + LABELS.astype("<i8").tobytes()
    assert dataset.sha256 == hashlib.sha256(content).hexdigest()


def test_digest_depends_on_content_and_not_on_memory_layout() -> None:
    colour = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    dataset = from_arrays(colour, LABELS, ["no", "yes"])
    assert from_arrays(np.asfortranarray(colour), LABELS, ["a", "b"]).sha256 == dataset.sha256
    assert from_arrays(colour, LABELS[::-1], ["no", "yes"]).sha256 != dataset.sha256
    assert from_arrays(colour[::-1], LABELS, ["no", "yes"]).sha256 != dataset.sha256


def test_arrays_are_read_only_copies() -> None:
    source = IMAGES.copy()
    dataset = from_arrays(source, LABELS, ["no", "yes"])
    source[:] = 0
    assert dataset.images.sum() == IMAGES.sum()
    with pytest.raises(ValueError, match="read-only"):
        dataset.images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        dataset.labels[0] = 0


def test_select_keeps_order_and_has_its_own_digest() -> None:
    dataset = from_arrays(IMAGES, LABELS, ["no", "yes"], name="tiny")
    swapped = dataset.select(np.array([1, 0]))
    assert swapped.labels.tolist() == [0, 1]
    assert np.array_equal(swapped.images[1], dataset.images[0])
    assert swapped.sha256 != dataset.sha256
    assert swapped.name == "tiny"


@pytest.mark.parametrize(
    ("positions", "says"),
    [
        (np.array([2]), "keep them in 0 to 1"),
        (np.array([-1]), "keep them in 0 to 1"),
        (np.array([], dtype=np.int64), "at least one position"),
        (np.array([True, False]), "list of integers"),
        (np.array([[0]]), "list of integers"),
    ],
)
def test_select_refuses_bad_positions(positions: NDArray[np.int64], says: str) -> None:
    dataset = from_arrays(IMAGES, LABELS, ["no", "yes"])
    with pytest.raises(DataError, match=says):
        dataset.select(positions)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "says"),
    [
        (IMAGES / 255.0, LABELS, ["no", "yes"], "dtype float64"),
        (IMAGES.astype(np.int64), LABELS, ["no", "yes"], "dtype int64"),
        (IMAGES[0], LABELS, ["no", "yes"], r"shape \(3, 4\)"),
        (IMAGES[:0], LABELS[:0], ["no", "yes"], "no empty axis"),
        (IMAGES, LABELS[:1], ["no", "yes"], "one for each of the 2 images"),
        (IMAGES, LABELS.astype(np.float64), ["no", "yes"], "labels have dtype float64"),
        (IMAGES, LABELS.astype(bool), ["no", "yes"], "labels have dtype bool"),
        (IMAGES, LABELS, ["no"], "label 1 of image 0 is outside 0 to 0"),
        (IMAGES, -LABELS, ["no", "yes"], "label -1 of image 0"),
        (IMAGES, np.array([0, 2**64 - 1], dtype=np.uint64), ["no", "yes"], "of image 1"),
        (IMAGES, LABELS, ["no", "no"], "'no' appears twice"),
        (IMAGES, LABELS, ["no", ""], "non-empty string"),
        (IMAGES, LABELS, [], "no classes"),
        (IMAGES, LABELS, "no", "one string"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_line(
    images: NDArray[np.uint8], labels: NDArray[np.int64], classes: list[str], says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        from_arrays(images, labels, classes, name="mine")
    assert "\n" not in str(caught.value)
    assert "'mine'" in str(caught.value)
