from __future__ import annotations

import numpy as np
import pytest

from models.preprocessing import prepare
from service.errors import DeadlineError, GateError, InvalidError, TooLargeError
from service.intake import Opened, Prepared, Sent, open_sent, prepare_opened


def prepare_sent(sent, spec):
    return prepare_opened(open_sent(sent, 10_000), spec)


def test_images_taken_together_come_out_as_if_taken_alone(model, images, encode):
    spec = model.manifest.input
    pixels = [images[0], 255 - images[1], images[2], np.kron(images[3], np.ones((9, 9, 1)))]
    sent = [Sent(encode(each.astype(np.uint8)), f"/{i}") for i, each in enumerate(pixels)]
    sent.insert(2, Sent(b"nonsense", "/bad"))
    together = prepare_sent(sent, spec)
    assert isinstance(together[2], GateError)
    assert [fault.pointer for fault in together[2].faults] == ["/bad"]
    for one, prepared in zip(sent, together, strict=True):
        (alone,) = prepare_sent([one], spec)
        if isinstance(prepared, Prepared):
            assert isinstance(alone, Prepared)
            assert alone.tensor.tolist() == prepared.tensor.tolist()
            assert alone.info == prepared.info
    assert together[1].info["applied"] == ["invert"]
    assert together[0].tensor.tolist() == prepare(images[:1], spec)[0].tolist()


def test_the_work_ends_when_the_time_is_up(model, images, encode):
    calls = []

    def before_each():
        calls.append(1)
        if len(calls) == 3:
            raise DeadlineError("late")

    opened = open_sent([Sent(encode(image), "/body") for image in images], 10_000)
    with pytest.raises(DeadlineError):
        prepare_opened(opened, model.manifest.input, before_each)
    assert len(calls) == 3


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP"])
def test_opening_takes_the_header_and_decodes_nothing(model, encode, form):
    """What is wrong with the rest is found when it is decoded, and told with its place."""
    noise = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    whole = encode(noise, form)
    (opened,) = open_sent([Sent(whole[: int(0.8 * len(whole))], "/body/files/3")], 600)
    assert isinstance(opened, Opened)
    assert opened.pixels == 600
    (error,) = prepare_opened([opened], model.manifest.input)
    assert isinstance(error, InvalidError)
    assert "damaged or cut short" in error.detail
    assert [fault.pointer for fault in error.faults] == ["/body/files/3"]
    (error,) = open_sent([Sent(whole, "/body")], 599)
    assert isinstance(error, TooLargeError)


def test_opened_numbers_have_as_many_pixels_as_were_sent():
    sent = [Sent({"pixels": [[0] * 30] * 20}, ""), Sent({"pixels": [[[0, 0, 0]] * 7]}, "")]
    assert [image.pixels for image in open_sent(sent, 600)] == [600, 7]
