from __future__ import annotations

import numpy as np
import pytest

from models.preprocessing import prepare
from service.errors import DeadlineError, GateError
from service.intake import Prepared, Sent, prepare_images


def test_images_taken_together_come_out_as_if_taken_alone(model, images, encode):
    spec = model.manifest.input
    pixels = [images[0], 255 - images[1], images[2], np.kron(images[3], np.ones((9, 9, 1)))]
    sent = [Sent(encode(each.astype(np.uint8)), f"/{i}") for i, each in enumerate(pixels)]
    sent.insert(2, Sent(b"nonsense", "/bad"))
    together = prepare_images(sent, spec, 10_000)
    assert isinstance(together[2], GateError)
    assert [fault.pointer for fault in together[2].faults] == ["/bad"]
    for one, prepared in zip(sent, together, strict=True):
        (alone,) = prepare_images([one], spec, 10_000)
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

    sent = [Sent(encode(image), "/body") for image in images]
    with pytest.raises(DeadlineError):
        prepare_images(sent, model.manifest.input, 10_000, before_each)
    assert len(calls) == 3
