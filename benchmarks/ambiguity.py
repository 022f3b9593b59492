"""Ambiguous images beside unfamiliar ones: what each number of a bundle says of them.

    python -m benchmarks.ambiguity --out DIR [--bundle BUNDLE] [--data-dir DATA]

Ambiguous images are made of the bundle's test images. NAME-20 is an unfamiliar set framed as MNIST
is (`training.views.frame`), so that its border does not give it away. Prints tables, and writes
`ambiguity.json`, `apart.png` (the sets by ambiguity and unfamiliarity) and `ambiguous.png`
(examples) to DIR.
"""

from __future__ import annotations

import json
import os
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks.columns import Column, table
from benchmarks.machine import describe
from models import bundle as bundles
from training import data, export, figures
from training.ambiguous import Images, ambiguous
from training.apart import ambiguity, place, shares
from training.data import data_directory
from training.evaluate import Answers
from training.views import frame

POLICY = "default"
ROWS, COLUMNS = 4, 16


def main(
    out: Annotated[Path, typer.Option()],
    bundle: Annotated[Path, typer.Option()] = Path("models/pretrained/mnist"),
    data_dir: Annotated[Path | None, typer.Option()] = None,
) -> None:
    loaded = bundles.load(bundle)
    manifest, calibration = loaded.manifest, loaded.calibration
    policy = manifest.policies[POLICY]
    score, spec = calibration.detector(policy), manifest.input
    graph, threads = loaded.path / bundles.GRAPH, os.cpu_count() or 1
    ensemble = export.open_ensemble(graph, manifest.members.group, threads)
    answer = partial(Answers.seen, spec=spec, ensemble=ensemble, detectors=loaded.detectors)

    directory = data_directory(data_dir)
    sets = {
        role: [
            data.load(each.name, "test", directory) for each in manifest.data if each.role == role
        ]
        for role in ("test", "ood")
    }
    (test,) = sets["test"]
    between, labels = ambiguous(test)
    familiar, doubtful = answer(test.images), answer(between.images)
    foreign = {each.name: answer(each.images) for each in sets["ood"]}
    framed = {f"{each.name}-20": answer(frame(each.images)) for each in sets["ood"]}
    unfamiliar = {**foreign, **framed}
    placed = place(
        calibration, policy, (familiar, test.labels), {"ambiguous": doubtful, **unfamiliar}
    )
    report = {
        "machine": describe("numpy", "onnxruntime"),
        "bundle": loaded.digest,
        "decisions": {name: shares(values) for name, values in placed.items()},
        **ambiguity(familiar, (doubtful, labels), unfamiliar, score),
    }
    if manifest.prediction_sets:
        inside = manifest.prediction_sets.fitted.sets(doubtful.prediction.probabilities)
        report["both_in_set"] = float(np.take_along_axis(inside, labels, axis=1).all(axis=1).mean())
        report["set_size"] = float(inside.sum(axis=1).mean())
    out.mkdir(parents=True, exist_ok=True)
    (out / "ambiguity.json").write_text(json.dumps(report, indent=1) + "\n")
    figures.save(figures.draw_points(placed, score), out / "apart.png")
    sheet(between.images).save(out / "ambiguous.png")
    print(tables(report))


def sheet(images: Images) -> Image.Image:
    """Images at equal distances in their order, side by side."""
    chosen = images[np.linspace(0, len(images) - 1, ROWS * COLUMNS).astype(int)]
    _, height, width, channels = chosen.shape
    tiles = chosen.reshape(ROWS, COLUMNS, height, width, channels).swapaxes(1, 2)
    picture = tiles.reshape(ROWS * height, COLUMNS * width, channels)
    return Image.fromarray(picture[..., 0] if channels == 1 else picture)


def tables(report: dict[str, Any]) -> str:
    """Markdown: medians and decisions of each set, and what tells the sets apart."""
    sentence = (
        f"{report['images']:,} ambiguous images: both labels have "
        f"{100 * report['both_labels']:.1f} % of the probability, and are the two most probable "
        f"of {100 * report['two_most_likely']:.1f} % of the images."
    )
    if "both_in_set" in report:
        sentence += (
            f" {100 * report['both_in_set']:.1f} % of the prediction sets hold both; they have "
            f"{report['set_size']:.2f} labels on average."
        )
    separations = {
        "ambiguous over test": report["auroc_over_test"],
        **{f"{name} over ambiguous": row for name, row in report["auroc_over_ambiguous"].items()},
    }
    percent = {
        name: {decision: 100 * share for decision, share in row.items()}
        for name, row in report["decisions"].items()
    }
    return "\n".join(
        [
            f"{sentence} {report['machine']}\n",
            _table("median", report["medians"], 3),
            _table("AUROC", separations, 3),
            _table(f"{POLICY} policy (%)", percent, 1),
        ]
    )


def _table(title: str, rows: dict[str, dict[str, float]], digits: int) -> str:
    names = next(iter(rows.values()))
    columns = [Column(name.replace("_", " "), itemgetter(name), digits) for name in names]
    return table({name: [row] for name, row in rows.items()}, columns, title)


if __name__ == "__main__":
    typer.run(main)
