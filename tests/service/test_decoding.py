"""Where images are decoded: in a step if they are small, or in threads; it changes no answer."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from models.policy import Policy
from service import images as pictures
from service import png
from service.api.answering import SMALL_PIXELS
from service.api.body import SMALL_BYTES
from service.cases import Case, Rule
from service.intake import Prepared, Sent, open_sent, prepare_opened
from service.offline import answer_files
from service.runtime import everything

pytestmark = pytest.mark.anyio

IN_THREADS = "in threads"
IN_STEPS = "in steps"
SMALL_SIDE = math.isqrt(SMALL_PIXELS)


@pytest.fixture
def decoded(monkeypatch):
    """Where images were decoded, one after the other."""
    places = []

    def note(count):
        decoder = threading.current_thread().name.startswith("decode_")
        places.extend([IN_THREADS if decoder else IN_STEPS] * count)

    def decode(*arguments):
        note(1)
        return pictures.decode(*arguments)

    def unpack(files):
        note(len(files))
        return png.unpack(files)

    monkeypatch.setattr("service.intake.decode", decode)
    monkeypatch.setattr("service.intake.unpack", unpack)
    return places


def smooth(height: int, width: int) -> np.ndarray:
    """A picture that few bytes are enough for."""
    rows, columns = np.mgrid[:height, :width]
    return (127 + 60 * np.sin(rows / 11) + 60 * np.cos(columns / 7)).astype(np.uint8)


def padded(size: int) -> PngInfo:
    """Words of so many bytes beside the pixels."""
    words = PngInfo()
    words.add_text("comment", "x" * size)
    return words


@pytest.fixture(scope="module")
def corpus(images, encode):
    """Files of many kinds; of each, whether it is decoded in a step if it comes alone."""
    colours = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    side, exif = SMALL_SIDE, Image.Exif()
    exif[0x0112] = 6
    return {
        "native": (encode(images[0]), True),
        "colours": (encode(colours), True),
        "palette": (encode(Image.fromarray(colours).convert("P")), True),
        "transparent": (encode(Image.fromarray(colours).convert("RGBA")), True),
        "turned": (encode(smooth(20, 30), "JPEG", exif=exif), True),
        "drafted": (encode(smooth(side, side), "JPEG"), True),
        "largest": (encode(smooth(side, side)), True),
        "one row more": (encode(smooth(side + 1, side)), False),
        "long": (encode(smooth(1, side**2)), True),
        "words": (encode(images[0], pnginfo=padded(SMALL_BYTES - 500)), True),
        "more words": (encode(images[0], pnginfo=padded(SMALL_BYTES)), False),
        "large": (encode(smooth(200, 300), "JPEG"), False),
    }


def base64_of(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


async def ask(client, data, **query):
    response = await client.post("/predict", content=data, params=query)
    assert response.status_code == 200, response.text
    (result,) = response.json()["results"]
    return result


@pytest.fixture
def offline(model, settings, tmp_path):
    """The result of a file by `python -m service predict --json`."""

    def answer(data):
        (tmp_path / "image").write_bytes(data)
        (result,) = answer_files(model, settings, [tmp_path / "image"])["results"]
        return json.loads(json.dumps(result))

    return answer


async def test_answers_are_those_of_offline_wherever_images_are_decoded(
    client, corpus, decoded, offline, monkeypatch
):
    for name, (data, small) in corpus.items():
        assert await ask(client, data) == offline(data), name
        assert decoded == [IN_STEPS if small else IN_THREADS, IN_STEPS], name
        decoded.clear()
    monkeypatch.setattr("service.api.answering.SMALL_PIXELS", 0)
    for name, (data, _) in corpus.items():
        assert await ask(client, data) == offline(data), name
        assert decoded == [IN_THREADS, IN_STEPS], name
        decoded.clear()


async def test_the_same_pixels_in_more_bytes_have_the_same_answer(client, corpus, decoded):
    assert await ask(client, corpus["native"][0]) == await ask(client, corpus["more words"][0])
    assert decoded == [IN_STEPS, IN_THREADS]


async def test_one_that_is_not_small_takes_the_others_along(client, corpus, decoded):
    small, large = corpus["native"][0], corpus["one row more"][0]
    files = [("files", ("a", small)), ("files", ("b", large)), ("files", ("c", b"no image"))]
    assert len(small) + len(large) < SMALL_BYTES
    results = (await client.post("/predict", files=files)).json()["results"]
    assert decoded == [IN_THREADS, IN_THREADS]
    assert results[:2] == [await ask(client, small), await ask(client, large)]
    assert results[2]["error"]["errors"][0]["pointer"] == "/body/files/2"


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_files_are_the_same_to_the_bit_in_whatever_steps(model, images, encode, draw):
    """Those of one size and mode are prepared together, whichever requests they came with."""
    randomness = np.random.default_rng(4)
    grey = [encode(image) for image in [*images[:5], 255 - images[5]]]
    colours = [encode(each) for each in randomness.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)]
    files = [*grey, *colours, encode(smooth(20, 20)), encode(smooth(20, 20), "JPEG")]
    needed = model.bundle.detectors.needed("predictive_entropy")
    rule = Rule(Policy(alpha=0.1, min_probability=0.6, members="exact"), 0.1, needed)
    spec = model.manifest.input

    def case(file: bytes) -> Case:
        (opened,) = open_sent([Sent(file, "")], SMALL_PIXELS)
        return Case(opened, rule)

    cases = [case(file) for file in files]
    while waiting := [each for each in cases if not each.settled]:
        stage = draw.choice([each.stage for each in waiting])
        peers = [each for each in waiting if each.stage == stage]
        model.stepper.step(draw.sample(peers, draw.randint(1, len(peers))))
    for file, each in zip(files, cases, strict=True):
        (alone,) = prepare_opened(open_sent([Sent(file, "")], SMALL_PIXELS), spec)
        assert each.tensor.tobytes() == alone.tensor.tobytes()
        assert each.image.info == alone.info
        model.stepper.run([by_itself := case(file)])
        assert each.known.logits.tobytes() == by_itself.known.logits.tobytes()
        assert each.known.look.scores == by_itself.known.look.scores


def damaged(data: bytes) -> bytes:
    """Its header is whole."""
    return data[: int(0.8 * len(data))]


def bodies(*files: bytes):
    """Every way in which they can be sent together, and where the last lies."""
    end = len(files) - 1
    yield (
        {"files": [("files", (f"{n}", file)) for n, file in enumerate(files)]},
        f"/body/files/{end}",
    )
    yield {"json": {"images": [base64_of(file) for file in files]}}, f"/body/images/{end}"
    if not end:
        yield {"content": files[0], "headers": {"Content-Type": "image/png"}}, "/body"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP"])
async def test_only_a_damaged_image(client, decoded, encode, monkeypatch, form):
    """It is found in the step, and told as if it had been found before."""
    file = damaged(encode(smooth(30, 30), form))
    for body, pointer in bodies(file):
        answers = []
        for small in (SMALL_PIXELS, 0):
            monkeypatch.setattr("service.api.answering.SMALL_PIXELS", small)
            response = await client.post("/predict", **body, params={"policy": "quick"})
            assert response.status_code == 422
            assert response.headers["content-type"] == "application/problem+json"
            problem = response.json()
            assert problem.pop("request_id") == response.headers["x-request-id"]
            answers.append(problem)
        assert answers[0] == answers[1]
        assert answers[0]["type"] == "urn:problem-type:langevin-gate:invalid-input"
        assert answers[0]["detail"].startswith("the image is damaged or cut short (")
        assert answers[0]["errors"] == [{"pointer": pointer, "message": answers[0]["detail"]}]
    assert decoded == [IN_STEPS, IN_THREADS] * 3


@pytest.mark.parametrize("query", [{}, {"policy": "quick"}, {"fdr": 0.5}, {"explain": True}])
async def test_a_damaged_image_among_others(client, encode, images, query):
    whole = encode(images[0])
    together = await client.post("/predict", content=whole, params=query)
    for body, pointer in bodies(whole, damaged(whole), whole, damaged(encode(images[1]))):
        response = await client.post("/predict", **body, params=query)
        assert response.status_code == 200
        first, bad, other, last = response.json()["results"]
        assert [first] == [other] == together.json()["results"]
        for result, place in ((bad, pointer[:-1] + "1"), (last, pointer)):
            assert (result["decision"], result["reasons"]) == ("abstain", ["input"])
            assert result["members_used"] == 0
            assert result["input"] is result["ood"] is result["probabilities"] is None
            assert result["error"]["status"] == 422
            assert result["error"]["request_id"] == response.headers["x-request-id"]
            assert [each["pointer"] for each in result["error"]["errors"]] == [place]


async def test_only_damaged_images(client, encode, images):
    files = [damaged(encode(image)) for image in images[:3]]
    for body, pointer in bodies(*files):
        response = await client.post("/predict", **body)
        assert response.status_code == 422
        problem = response.json()
        assert problem["detail"].startswith(
            "none of the 3 images can be used: the image is damaged"
        )
        pointers = [each["pointer"] for each in problem["errors"]]
        assert pointers == [pointer[:-1] + number for number in "012"]


async def test_a_damaged_image_is_no_failure_of_the_step(client, encode, images, caplog):
    answer = await client.post("/predict", content=damaged(encode(images[0])))
    assert answer.status_code == 422
    assert not [record for record in caplog.records if record.name == "service.scheduler"]


async def test_what_is_tried_alone_is_not_decoded_again(
    start, model, with_logits, corpus, encode, decoded, offline
):
    """One image fails the step for all: requests are tried one by one, then images."""
    poison = encode(np.zeros((8, 8), np.uint8))
    entered, release = threading.Event(), threading.Event()

    def logits(batch):
        entered.set()
        assert release.wait(20)
        if (batch.max(axis=(1, 2, 3)) < 0).any():
            raise RuntimeError("one of these")
        return everything(model.runtime, batch).logits

    names = [name for name, (_, small) in corpus.items() if small]
    files = {name: corpus[name][0] for name in names} | {
        "poison": poison,
        "damaged": damaged(corpus["largest"][0]),
    }
    async with start(with_logits(logits), max_batch_images=32) as client:
        first = asyncio.ensure_future(client.post("/predict", content=files["native"]))
        assert await asyncio.to_thread(entered.wait, 20)
        asked = [
            asyncio.ensure_future(client.post("/predict", content=file)) for file in files.values()
        ]
        await client.until_queued(len(files))
        release.set()
        assert (await first).status_code == 200
        answers = dict(zip(files, await asyncio.gather(*asked), strict=True))
    assert decoded == [IN_STEPS] * (1 + len(files))
    statuses = {name: answer.status_code for name, answer in answers.items()}
    assert statuses == dict.fromkeys(names, 200) | {"poison": 500, "damaged": 422}
    for name in names:
        assert answers[name].json()["results"] == [offline(files[name])], name
    (drafted,) = answers["drafted"].json()["results"]
    assert drafted["input"] == {
        "width": SMALL_SIDE,
        "height": SMALL_SIDE,
        "mode": "L",
        "applied": ["reduce", "invert", "resize"],
    }


def test_a_damaged_file_does_not_disturb_those_that_are_unpacked_with_it(model, images, encode):
    noise = np.random.default_rng(5).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    grey, colours = [encode(each) for each in images[:4]], [encode(each) for each in noise]
    broken = grey[1].replace(b"IDAT\x78", b"IDAT\x00")  # no stream of zlib's, but all else is whole
    files = [grey[0], broken, colours[0], grey[2], colours[1], colours[2], grey[3]]
    spec = model.manifest.input

    def prepared(some):
        return prepare_opened(open_sent([Sent(file, "") for file in some], SMALL_PIXELS), spec)

    together, alone = prepared(files), [prepared([file])[0] for file in files]
    assert [isinstance(each, Prepared) for each in together] == [True, False, *[True] * 5]
    for actual, expected in zip(together, alone, strict=True):
        if isinstance(expected, Prepared):
            assert actual.tensor.tobytes() == expected.tensor.tobytes()
            assert actual.info == expected.info
        else:
            assert (type(actual), actual.detail) == (type(expected), expected.detail)


def test_what_was_decoded_for_a_step_that_failed_is_decoded_again_to_the_same(
    model, corpus, monkeypatch
):
    """Memory was short for one of the images, so that none was kept."""
    calls = Counter()

    def decode(image, size, target):
        calls[size] += 1
        if size == (8, 8) and calls[size] == 1:
            raise MemoryError
        return pictures.decode(image, size, target)

    files = [corpus[name][0] for name in ("drafted", "turned", "palette")]
    spec = model.manifest.input

    def opened():
        return open_sent([Sent(file, "") for file in files], SMALL_PIXELS)

    rule = Rule(Policy(alpha=0.1, min_probability=0.6), 0.1, frozenset(["predictive_entropy"]))
    cases = [Case(each, rule) for each in opened()]
    monkeypatch.setattr("service.intake.decode", decode)
    with pytest.raises(MemoryError):
        model.stepper.step(cases)
    model.stepper.step(cases)
    assert calls == {(SMALL_SIDE, SMALL_SIDE): 2, (30, 20): 2, (8, 8): 2}
    for case, expected in zip(cases, prepare_opened(opened(), spec), strict=True):
        assert case.tensor.tobytes() == expected.tensor.tobytes()
        assert case.image.info == expected.info
    assert cases[0].image.info["width"] == SMALL_SIDE
