from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models.preprocessing import InputSpec, grey, prepare

Pixels = NDArray[np.uint8]


def spec(channels: int = 1, height: int = 8, width: int = 8, **changes: Any) -> InputSpec:
    """An input that is not standardised, so that tensors are pixels / 255."""
    values = {"polarity": "as-is", "mean": (0.0,) * channels, "std": (1.0,) * channels, **changes}
    return InputSpec.model_validate(
        {"channels": channels, "height": height, "width": width, **values}
    )


def random_images(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def prepared(images: Pixels, target: InputSpec) -> NDArray[np.float64]:
    """Pixels [N, H, W, C] on the scale of 0 to 255."""
    tensor, _ = prepare(images, target)
    return tensor.transpose(0, 2, 3, 1).astype(np.float64) * 255


def resized(image: Pixels, height: int, width: int) -> NDArray[np.float64]:
    """Pillow's triangle filter on each channel [h, w, c], in floating point."""
    bands = [Image.fromarray(band.astype(np.float32)) for band in np.moveaxis(image, 2, 0)]
    small = [np.asarray(band.resize((width, height), Image.Resampling.BILINEAR)) for band in bands]
    return np.stack(small, axis=2).astype(np.float64)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_of_the_right_size_is_only_standardised(channels: int) -> None:
    images = random_images(3, 8, 6, channels)
    mean, std = (0.13, 0.5, 0.7)[:channels], (0.31, 0.25, 0.2)[:channels]
    tensor, applied = prepare(images, spec(channels, 8, 6, mean=mean, std=std))
    scaled = images.astype(np.float32) / np.float32(255)
    expected = (scaled - np.float32(mean)) / np.float32(std)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    assert np.array_equal(tensor, expected.transpose(0, 3, 1, 2))
    assert applied == [()] * 3


def test_images_are_not_changed_in_place() -> None:
    images = np.full((1, 5, 5, 1), 255, np.uint8)
    prepare(images, spec(polarity="light-on-dark"))
    assert (images == 255).all()


@pytest.mark.parametrize(
    "size", [(16, 16), (4, 4), (28, 28), (37, 37), (1, 1), (2, 2), (500, 500), (9, 9), (7, 7)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_equals_that_of_pillow(size: tuple[int, int], channels: int) -> None:
    images = random_images(2, *size, channels)
    tensor, applied = prepare(images, spec(channels))
    assert applied == [("resize",)] * 2
    for image, pixels in zip(images, prepared(images, spec(channels)), strict=True):
        assert pixels == pytest.approx(resized(image, 8, 8), abs=2e-3)
    assert tensor.shape == (2, channels, 8, 8)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(2, 60), width=st.integers(2, 60), target=st.sampled_from([8, 13, 28]))
def test_aspect_is_kept_and_the_image_centred(height: int, width: int, target: int) -> None:
    image = random_images(1, height, width, 1)
    (pixels,) = prepared(image, spec(height=target, width=target))
    scale = target / max(height, width)
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    top, left = ((target - side) // 2 for side in inner)
    window = pixels[top : top + inner[0], left : left + inner[1]]
    assert window == pytest.approx(resized(image[0], *inner), abs=2e-3)
    outside = np.ones(pixels.shape, dtype=bool)
    outside[top : top + inner[0], left : left + inner[1]] = False
    assert pixels[outside] == pytest.approx(border_median(image[0]), abs=1e-4)


def border_median(image: Pixels) -> float:
    inside = np.zeros(image.shape[:2], dtype=bool)
    inside[1:-1, 1:-1] = True
    return float(np.median(image[~inside]))


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (3, 8), (8, 3), (1, 5), (4, 2)])
def test_padding_is_the_median_of_the_border(size: tuple[int, int]) -> None:
    image = random_images(1, *size, 1, seed=3)
    _, applied = prepare(image, spec())
    pixels = prepared(image, spec())[0, :, :, 0]
    assert applied[0][-1] == "pad"
    ends = pixels[[0, -1]] if size[0] < size[1] else pixels[:, [0, -1]]
    assert ends == pytest.approx(border_median(image[0]), abs=1e-4)


def test_border_of_a_line_has_every_pixel_once() -> None:
    """An upright line is padded as the same line lying down."""
    lying = np.array([[0, 0, 100, 90, 50, 10]], np.uint8)[None, ..., None]
    upright = lying.transpose(0, 2, 1, 3)
    assert prepared(lying, spec())[0, 0, 0] == pytest.approx(30, abs=1e-4)
    assert prepared(upright, spec())[0, 0, 0] == pytest.approx(30, abs=1e-4)


def test_image_that_only_needs_a_frame_is_not_resized() -> None:
    image = random_images(1, 8, 4, 1)
    tensor, applied = prepare(image, spec())
    assert applied == [("pad",)]
    assert np.array_equal(tensor[0, 0, :, 2:6], image[0, ..., 0] / np.float32(255))


@pytest.mark.parametrize("polarity", ["light-on-dark", "as-is"])
@pytest.mark.parametrize("ground", [0, 127, 128, 255])
def test_dark_strokes_on_a_bright_ground_are_inverted(polarity: str, ground: int) -> None:
    image = np.full((1, 8, 8, 1), ground, np.uint8)
    image[0, 3:5, 3:5] = 255 - ground
    _, applied = prepare(image, spec(polarity=polarity))
    pixels = prepared(image, spec(polarity=polarity))
    inverted = polarity == "light-on-dark" and ground > 127.5
    assert applied == [("invert",) if inverted else ()]
    assert pixels == pytest.approx(255.0 - image if inverted else 1.0 * image, abs=1e-4)


def test_the_border_decides_and_not_the_middle() -> None:
    image = np.full((1, 8, 8, 1), 255, np.uint8)
    image[0, 0], image[0, -1], image[0, :, 0], image[0, :, -1] = 0, 0, 0, 0
    image[0, 0, :7] = 255
    _, applied = prepare(image, spec(polarity="light-on-dark"))
    assert applied == [()]


def test_each_image_of_a_batch_is_inverted_for_itself() -> None:
    images = np.zeros((3, 8, 8, 1), np.uint8)
    images[1] = 255
    _, applied = prepare(images, spec(polarity="light-on-dark"))
    assert applied == [(), ("invert",), ()]
    assert not prepared(images, spec(polarity="light-on-dark")).any()


def test_negative_is_padded_with_its_own_border() -> None:
    image = np.full((1, 8, 4, 1), 255, np.uint8)
    _, applied = prepare(image, spec(polarity="light-on-dark"))
    assert applied == [("invert", "pad")]
    assert not prepared(image, spec(polarity="light-on-dark")).any()


@pytest.mark.parametrize(("channels", "mode"), [(2, "LA"), (4, "RGBA")])
def test_alpha_is_laid_over_white(channels: int, mode: str) -> None:
    image = random_images(1, 8, 8, channels)
    image[0, 0, :, -1], image[0, 1, :, -1] = 0, 255
    colours = channels - 1
    pixels = prepared(image, spec(colours))[0]
    over = Image.fromarray(image[0], mode=None).convert("RGBA")
    white = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    expected = np.asarray(white, dtype=float)[..., :colours]
    assert pixels == pytest.approx(expected, abs=1.01)
    assert pixels[0] == pytest.approx(255, abs=1e-4)
    assert pixels[1] == pytest.approx(image[0, 1, :, :-1].astype(float), abs=1e-4)
    assert prepare(image, spec(colours))[1] == [("alpha",)], mode


@pytest.mark.parametrize(
    ("colour", "luma"),
    [((255, 0, 0), 76.245), ((0, 255, 0), 149.685), ((0, 0, 255), 29.07), ((90, 90, 90), 90.0)],
)
def test_luma(colour: tuple[int, int, int], luma: float) -> None:
    image = np.full((1, 8, 8, 3), colour, np.uint8)
    assert prepared(image, spec()) == pytest.approx(luma, abs=1e-3)
    assert prepare(image, spec())[1] == [("grey",)]


def test_luma_equals_that_of_pillow() -> None:
    image = random_images(1, 8, 8, 3)
    expected = np.asarray(Image.fromarray(image[0]).convert("L"), dtype=float)
    assert prepared(image, spec())[0, ..., 0] == pytest.approx(expected, abs=0.6)


@pytest.mark.parametrize(
    ("channels", "weights"), [(1, (1.0,)), (3, (0.299, 0.587, 0.114))], ids=str
)
def test_grey_values_undo_the_standardisation(channels: int, weights: tuple[float, ...]) -> None:
    images = random_images(5, 6, 9, channels)
    target = spec(channels, 6, 9, mean=(0.13, 0.5, 0.7)[:channels], std=(0.31, 2, 0.2)[:channels])
    values = grey(prepare(images, target)[0], target)
    assert values.dtype == np.float32
    assert values == pytest.approx(images / 255.0 @ np.array(weights), abs=1e-6)


def test_grey_values_by_hand() -> None:
    """Of prepared channels 1, −1 and 2: 0.299 · 0.7 + 0.587 · 0.2 + 0.114 · 1.1 = 0.4521."""
    target = spec(3, 1, 2, mean=(0.5, 0.3, 0.1), std=(0.2, 0.1, 0.5))
    standardised = np.array([[1, 0], [-1, 0], [2, 0]], np.float32).reshape(1, 3, 1, 2)
    assert grey(standardised, target)[0, 0] == pytest.approx([0.4521, 0.337], abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_values_of_an_image_alone_and_in_a_batch_to_the_bit(channels: int) -> None:
    target = spec(channels, 28, 28, mean=(0.13, 0.5, 0.7)[:channels])
    images, _ = prepare(random_images(17, 28, 28, channels), target)
    together = grey(images, target)
    assert np.array_equal(grey(images[::-1], target), together[::-1])
    for index in range(17):
        assert np.array_equal(grey(images[index : index + 1], target)[0], together[index])


def test_grey_is_repeated_for_a_network_of_colours() -> None:
    image = random_images(1, 8, 8, 1)
    tensor, applied = prepare(image, spec(3))
    assert applied == [("rgb",)]
    assert np.array_equal(tensor, np.repeat(tensor[:, :1], 3, axis=1))


@pytest.mark.parametrize(
    ("shape", "target", "applied"),
    [
        ((20, 10, 4), spec(1, polarity="light-on-dark"), ("alpha", "grey", "resize", "pad")),
        ((20, 10, 2), spec(3, polarity="light-on-dark"), ("alpha", "rgb", "resize", "pad")),
        ((20, 10, 3), spec(3), ("resize", "pad")),
        ((8, 5, 1), spec(1), ("pad",)),
    ],
)
def test_steps_are_named_in_their_order(
    shape: tuple[int, ...], target: InputSpec, applied: tuple[str, ...]
) -> None:
    image = np.full((1, *shape), 10, np.uint8)
    image[..., -1] = 255
    assert prepare(image, target)[1] == [applied]


def test_transparent_drawing_becomes_light_on_dark() -> None:
    """Black strokes on nothing: over white, grey, inverted. The usual canvas of a browser."""
    image = np.zeros((1, 16, 16, 4), np.uint8)
    image[0, 6:10, 6:10, 3] = 255
    tensor, applied = prepare(image, spec(polarity="light-on-dark"))
    assert applied == [("alpha", "grey", "invert", "resize")]
    assert tensor[0, 0, 0, 0] == 0
    assert tensor[0, 0, 3:5, 3:5].min() > 0.7


@pytest.mark.parametrize("value", [0, 77, 255])
@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (1000, 1), (3, 997), (2, 100_000)])
def test_flat_image_stays_flat(shape: tuple[int, int], value: int) -> None:
    image = np.full((1, *shape, 1), value, np.uint8)
    tensor, applied = prepare(image, spec(height=28, width=28))
    assert tensor.shape == (1, 1, 28, 28)
    assert tensor * 255 == pytest.approx(value, abs=1e-3)
    assert applied == [("resize",) if shape == (1, 1) else ("resize", "pad")]


def test_single_pixel_of_every_mode() -> None:
    for channels in (1, 2, 3, 4):
        for target in (spec(1), spec(3)):
            tensor, _ = prepare(random_images(2, 1, 1, channels), target)
            assert tensor.shape == (2, *target.shape)
            assert np.isfinite(tensor).all()


@pytest.mark.parametrize("shape", [(8, 8, 1), (20, 13, 4), (5, 9, 3), (100, 3, 2), (1, 1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_image_alone_equals_itself_in_a_batch(shape: tuple[int, ...], channels: int) -> None:
    images = random_images(17, *shape)
    target = spec(channels, polarity="light-on-dark")
    together, applied = prepare(images, target)
    for index in range(len(images)):
        alone, steps = prepare(images[index : index + 1], target)
        assert steps == applied[index : index + 1]
        assert alone[0] == pytest.approx(together[index], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    mode=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
    polarity=st.sampled_from(["as-is", "light-on-dark"]),
)
def test_pixels_stay_within_their_range(
    height: int, width: int, mode: int, channels: int, polarity: str
) -> None:
    image = random_images(1, height, width, mode, seed=height)
    tensor, _ = prepare(image, spec(channels, 9, 11, polarity=polarity))
    assert tensor.shape == (1, channels, 9, 11)
    assert tensor.min() >= -1e-6
    assert tensor.max() <= 1 + 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": (0.1, 0.2, 0.3)},
        {"std": (0.1, 0.2, 0.3)},
        {"mean": ()},
        {"std": (0.0,)},
        {"std": (-1.0,)},
        {"mean": (float("nan"),)},
        {"std": (float("inf"),)},
    ],
    ids=str,
)
def test_standardisation_that_does_not_fit_the_channels(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        spec(1, **changes)
