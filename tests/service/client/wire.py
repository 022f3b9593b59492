"""HTTP/1.1 by hand, for servers that misbehave, and answers as the service gives them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

DIGEST = "sha256:" + "ab" * 32


def result(**changes: Any) -> dict[str, Any]:
    """A result that accepts."""
    detector = {"score": 0.3, "p_value": 0.61}
    return {
        "decision": "accept",
        "reasons": [],
        "label": "bee",
        "probabilities": {"ant": 0.01, "bee": 0.98, "cat": 0.01},
        "uncertainty": {
            "predictive_entropy": 0.112,
            "expected_entropy": 0.1,
            "mutual_information": 0.012,
            "unit": "nat",
            "maximum": 1.0986,
            "share": {
                "predictive_entropy": 0.102,
                "expected_entropy": 0.091,
                "mutual_information": 0.011,
            },
        },
        "ood": {
            "flag": False,
            "p_value": 0.61,
            "alpha": 0.01,
            "fdr": None,
            "level": 0.01,
            "score": 0.3,
            "detector": "predictive_entropy",
            "members_used": 2,
            "detectors": {"predictive_entropy": detector},
        },
        "prediction_set": ["bee"],
        "members_used": 6,
        "input": {"width": 8, "height": 8, "mode": "L", "applied": ["none"]},
        "error": None,
    } | changes


def document(*results: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An answer of the service's."""
    return {
        "results": list(results) or [result()],
        "model": {
            "name": "tiny",
            "version": "1",
            "digest": DIGEST,
            "members": 6,
            "verified": True,
        },
        "policy": "default",
        "members": {"mode": "all", "available": 6, "differing_rate": 0.0, "confidence": 1.0},
        "certificate": None,
        "request_id": "r-1",
        "timing_ms": {"decode": 0.1, "queue": 0.2, "infer": 0.8, "total": 1.3},
    } | changes


def certificate(status: str = "valid") -> dict[str, Any]:
    return {
        "selective_risk": 0.01,
        "confidence": 0.999,
        "coverage": 0.97,
        "calibration_size": 10000,
        "status": status,
        "risk_bound": 0.008,
        "coverage_bound": 0.96,
        "alpha": 0.01,
        "min_probability": 0.9,
        "assumption": "images like those of calibration",
    }


def http(status: int, body: bytes, media_type: str = "application/json", *more: str) -> bytes:
    """The bytes of an HTTP answer."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {media_type}", *more]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def answer(label: str = "bee", *more: str) -> bytes:
    """The bytes of an answer that accepts."""
    accepted = result(label=label, probabilities={label: 1.0})
    return http(200, json.dumps(document(accepted)).encode(), "application/json", *more)


def bodies(connection: socket.socket) -> Iterator[bytes]:
    """The bodies of the requests that come on a connection, until it ends."""
    with connection.makefile("rb") as stream:
        while stream.readline():
            length = 0
            while (line := stream.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            yield stream.read(length)


def finish(connection: socket.socket) -> None:
    """Close so that what was sent arrives: to close with requests unread would reset."""
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(4096):
        pass
