"""The work that every peer does: PNG → tensor → member logits → the fields of an answer.

It imports nothing of ours, since a peer's venv has none of our dependencies.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

FLAG_ABOVE = 0.05  # mutual information in nats; the work is the same at any threshold


@dataclass(frozen=True)
class Options:
    """What the benchmark asks of a peer: `wait_ms` is for how long a batch may wait to fill."""

    bundle: Path
    port: int
    batch: int
    wait_ms: int

    @classmethod
    def from_environment(cls) -> Options:
        return cls(
            Path(os.environ["PEER_BUNDLE"]),
            int(os.environ["PEER_PORT"]),
            int(os.environ["PEER_BATCH"]),
            int(os.environ["PEER_WAIT_MS"]),
        )


@dataclass(frozen=True)
class Ensemble:
    """An open session on a bundle's graph, one thread, and what its manifest says of the input."""

    session: Any
    labels: tuple[str, ...]
    mean: float
    std: float

    @classmethod
    def open(cls, bundle: Path) -> Ensemble:
        manifest = json.loads((bundle / "manifest.json").read_text())
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = ort.InferenceSession(
            str(bundle / "ensemble.onnx"), options, providers=["CPUExecutionProvider"]
        )
        (mean,), (std,) = manifest["input"]["mean"], manifest["input"]["std"]
        return cls(session, tuple(manifest["labels"]), mean, std)

    def decode(self, png: bytes) -> Floats:
        """One grey image, standardised, [1, H, W]."""
        with Image.open(io.BytesIO(png)) as image:
            pixels = np.asarray(image.convert("L"), np.float32)
        standardised: Floats = (pixels * np.float32(1 / 255) - self.mean) * (1 / self.std)
        return standardised[None]

    def answers(self, images: list[Floats]) -> list[dict[str, Any]]:
        """The fields of an answer for each image."""
        (logits,) = self.session.run(["logits"], {"images": np.stack(images)})
        probabilities, total, expected = summarise(logits)
        information = total - expected
        rows = zip(
            probabilities.argmax(axis=1).tolist(),
            probabilities.tolist(),
            total.tolist(),
            expected.tolist(),
            information.tolist(),
            strict=True,
        )
        return [
            {
                "label": self.labels[best],
                "probabilities": dict(zip(self.labels, shares, strict=True)),
                "predictive_entropy": predictive,
                "expected_entropy": aleatoric,
                "mutual_information": epistemic,
                "flag": epistemic > FLAG_ABOVE,
            }
            for best, shares, predictive, aleatoric, epistemic in rows
        ]


def encode(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode()


def summarise(logits: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean probabilities [B, K], their entropy and the members' mean entropy [B], from [B, M, K].

    A member's entropy is ln Z − Σ_k p_k z_k with z = logits − their maximum and Z = Σ_k exp z_k.
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exponential = np.exp(shifted)
    normaliser = exponential.sum(axis=-1, keepdims=True)
    members = exponential / normaliser
    probabilities = members.mean(axis=1)
    tiny = np.finfo(np.float32).tiny
    total = -(probabilities * np.log(np.maximum(probabilities, tiny))).sum(axis=-1)
    entropies = np.log(normaliser[..., 0]) - (members * shifted).sum(axis=-1)
    expected = np.minimum(entropies.mean(axis=1), total)
    return probabilities, total, expected
