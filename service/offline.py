"""Files → answers without a server, on the road that a request takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from service.cases import Case
from service.errors import GateError, InvalidError
from service.intake import Sent, open_sent, prepare_opened
from service.repository import Model
from service.results import Json, certificate, choose_options, members_info, model_info, results
from service.settings import Settings

REQUEST_ID = "offline"


def answer_files(model: Model, settings: Settings, files: Sequence[Path]) -> Json:
    """Answer image files, `-` being standard input, in order.

    A file that cannot be read is answered as a bad image of a request is: abstain, with the error.
    """
    options = choose_options(model, settings.policy)
    cases: list[Case | GateError] = []
    for file in files:
        try:
            content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        except OSError as error:
            cases.append(InvalidError(f"{file}: {error.strerror}"))
            continue
        opened = open_sent([Sent(content, f"/{file}")], settings.max_pixels)
        (image,) = prepare_opened(opened, model.manifest.input)
        cases.append(image if isinstance(image, GateError) else Case(image, options.rule))
    images = [case for case in cases if isinstance(case, Case)]
    for first in range(0, len(images), settings.max_batch_images):
        model.stepper.run(images[first : first + settings.max_batch_images])
    return {
        "results": results(model, cases, options, REQUEST_ID),
        "model": model_info(model),
        "policy": options.policy_name,
        "members": members_info(model, options),
        "certificate": certificate(model, options),
    }
