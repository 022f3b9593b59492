"""Files → answers without a server, on the road that a request takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from service.errors import GateError, InvalidError
from service.evidence import Evidence
from service.intake import Prepared, Sent, prepare_images
from service.repository import Model
from service.results import Json, certificate, choose_options, members_info, model_info, results
from service.settings import Settings

REQUEST_ID = "offline"


def answer_files(model: Model, settings: Settings, files: Sequence[Path]) -> Json:
    """Answer image files, `-` being standard input, in order.

    A file that cannot be read is answered as a bad image of a request is: abstain, with the error.
    """
    spec = model.manifest.input
    images: list[Prepared | GateError] = []
    for file in files:
        try:
            content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        except OSError as error:
            images.append(InvalidError(f"{file}: {error.strerror}"))
            continue
        images += prepare_images([Sent(content, f"/{file}")], spec, settings.max_pixels)
    tensors = [image.tensor for image in images if isinstance(image, Prepared)]
    options = choose_options(model, settings.policy)
    evidence: list[Evidence] = []
    for first in range(0, len(tensors), settings.max_batch_images):
        batch = np.concatenate(tensors[first : first + settings.max_batch_images])
        evidence += model.stepper.run(batch, options.rule)
    return {
        "results": results(model, images, evidence, options, REQUEST_ID),
        "model": model_info(model),
        "policy": options.policy_name,
        "members": members_info(model, options),
        "certificate": certificate(model, options),
    }
