"""`report/`, with figures and `report.json`, and the model card: what goes into the bundle to read.

Diagnostics may lack any of these; their figures and lines are then left out.

    gradient_noise_ratio   {layer: ratio}                   minibatch over injected noise
    coordinates            {"rhat": [q], "ess": [q]}        `training.diagnostics.Mixing`
    drift                  {observable: z}                  `training.diagnostics.drift`
    relaxation             {"epochs_per_point": e,
                            "curves": {observable: fields}}  `training.relaxation.Relaxation`
    members                                                 `training.members.curves`
    prior_predictive                                        `training.prior_predictive`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.manifest import Manifest
from models.uncertainty import Array
from training import figures
from training.card import model_card


def write(
    folder: Path,
    manifest: Manifest,
    diagnostics: dict[str, Any],
    traces: Array,
    placed: dict[str, Array],
) -> None:
    """Write `report/` and `MODEL_CARD.md` into `folder`.

    Args:
        folder: the bundle to be.
        manifest: what is published.
        diagnostics: figures of `training.verdict`, ready for JSON.
        traces: validation NLL at the trace points of the sampling phase, nats, [C, t].
        placed: where the images of each set lie, and what becomes of them, `training.apart.place`.
    """
    report = folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    content = {
        "verdict": manifest.verdict.model_dump(),
        "verified": manifest.verdict.verified,
        "diagnostics": diagnostics,
        "results": manifest.results,
    }
    (report / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    score = manifest.policies["default"].score or manifest.calibration.score
    drawn = {
        "traces": figures.draw_traces(traces),
        "temperatures": figures.draw_temperatures(diagnostics),
        "scores": figures.draw_scores(placed, score),
        "apart": figures.draw_points(placed, score),
    }
    optional = {
        "members": ("members", figures.draw_members),
        "relaxation": ("relaxation", figures.draw_relaxation),
        "coordinates": ("mixing", figures.draw_mixing),
    }
    for key, (name, draw) in optional.items():
        if diagnostics.get(key):
            drawn[name] = draw(diagnostics[key])
    for name, figure in drawn.items():
        figures.save(figure, report / f"{name}.png")
    (folder / "MODEL_CARD.md").write_text(model_card(manifest, diagnostics))
