"""Prometheus metrics of one application: its own registry, and labels from closed sets.

What happens to every request and in every step is noted in lists, and added up when someone looks
or a list is long: one by one the counters would take a tenth of a request's time.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from service.repository import Model
from service.results import Json

CONTENT_TYPE = CONTENT_TYPE_LATEST
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_NATS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)

MOST_NOTES = 512

disable_created_metrics()  # type: ignore[no-untyped-call]


class Distribution(Histogram):
    """A histogram that takes many values at once."""

    def observe_all(self, values: Sequence[float]) -> None:
        """Do what `observe` does for each of the values."""
        if not values:
            return
        numbers = np.searchsorted(self._upper_bounds, values)
        self._sum.inc(sum(values))
        for bucket, count in zip(self._buckets, np.bincount(numbers).tolist(), strict=False):
            if count:
                bucket.inc(count)


@dataclass(slots=True)
class _Notes:
    """What happened since metrics were added up.

    Attributes:
        requests: seconds of each, by route, method and code.
        decisions: how many images, by policy, decision and reason.
        members, predictive_entropy, mutual_information: of each image that was inferred.
        decode, queue: seconds of each request.
        steps: images, stage and seconds of each.
        rejections: how many, by reason.
        size: how many notes of requests, answers, images and steps.
    """

    requests: defaultdict[tuple[str, str, int], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )
    decisions: Tally[tuple[str, str, str]] = field(default_factory=Tally)
    members: list[int] = field(default_factory=list)
    predictive_entropy: list[float] = field(default_factory=list)
    mutual_information: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    queue: list[float] = field(default_factory=list)
    steps: list[tuple[int, int, float]] = field(default_factory=list)
    rejections: Tally[str] = field(default_factory=Tally)
    size: int = 0


class Metrics:
    """The counters, gauges and histograms, all named `gate_*`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._notes = _Notes()
        self._served: tuple[str, ...] = ()
        self.requests = Counter(
            "gate_http_requests", "HTTP requests", ("route", "method", "code"), registry=registry
        )
        self.request_seconds = Distribution(
            "gate_http_request_duration_seconds",
            "Time from a request's head to its answer",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.images = Counter("gate_inference_images", "Images inferred", registry=registry)
        self.executions = Counter("gate_inference_executions", "Inference steps", registry=registry)
        self.batch_size = Distribution(
            "gate_batch_size", "Images in one inference step", buckets=_SIZES, registry=registry
        )
        self.queue_images = Gauge(
            "gate_queue_images",
            "Images that wait",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queue_wait = Distribution(
            "gate_queue_wait_seconds", "Time in the queue", buckets=_SECONDS, registry=registry
        )
        self.stages = Distribution(
            "gate_stage_duration_seconds",
            "Time of one request in a stage",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.rejected = Counter(
            "gate_rejected", "Requests that were turned away", ("reason",), registry=registry
        )
        self.decisions = Counter(
            "gate_decisions", "Images decided", ("policy", "decision", "reason"), registry=registry
        )
        self.predictive_entropy = Distribution(
            "gate_predictive_entropy_nats", "Predictive entropy", buckets=_NATS, registry=registry
        )
        self.cache_hits = Counter(
            "gate_cache_hits", "Images answered by evidence that was kept", registry=registry
        )
        self.members = Distribution(
            "gate_members_evaluated",
            "Members that an image was shown to",
            buckets=_SIZES,
            registry=registry,
        )
        self.mutual_information = Distribution(
            "gate_mutual_information_nats", "Mutual information", buckets=_NATS, registry=registry
        )
        self.bundle = Gauge(
            "gate_bundle_info",
            "1: the bundle that is served; 0: one that was",
            ("name", "version", "digest", "members"),
            registry=registry,
            multiprocess_mode="livemax",
        )

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        self.add_up()
        return generate_latest(self.registry)

    def add_up(self) -> None:
        """Bring the metrics up to what was noted."""
        notes, self._notes = self._notes, _Notes()
        for (route, method, code), seconds in notes.requests.items():
            self.requests.labels(route, method, str(code)).inc(len(seconds))
            self.request_seconds.labels(route).observe_all(seconds)
        for labels, count in notes.decisions.items():
            self.decisions.labels(*labels).inc(count)
        self.members.observe_all(notes.members)
        self.predictive_entropy.observe_all(notes.predictive_entropy)
        self.mutual_information.observe_all(notes.mutual_information)
        for reason, count in notes.rejections.items():
            self.rejected.labels(reason).inc(count)
        self.stages.labels("decode").observe_all(notes.decode)
        self.queue_wait.observe_all(notes.queue)
        self.executions.inc(len(notes.steps))
        self.images.inc(sum(images for images, stage, _ in notes.steps if stage == 0))
        self.batch_size.observe_all([images for images, _, _ in notes.steps])
        self.stages.labels("infer").observe_all([seconds for _, _, seconds in notes.steps])

    def serve(self, model: Model, queued: Callable[[], int]) -> None:
        """Tell which model is served, and where to read the queue's length."""
        manifest = model.manifest
        names = manifest.name, manifest.version, model.bundle.digest, str(model.runtime.members)
        if self._served:
            self.bundle.labels(*self._served).set(0)
        self._served = names
        self.bundle.labels(*names).set(1)
        self.queue_images.set_function(queued)

    def count_step(self, images: int, stage: int, seconds: float) -> None:
        """Count one inference step: so many images, shown to the group of members `stage`."""
        self._notes.steps.append((images, stage, seconds))
        self._noted()

    def count_request(self, route: str, method: str, code: int, seconds: float) -> None:
        """Count one HTTP request by its route's template."""
        known = method if method in METHODS else "other"
        self._notes.requests[route, known, code].append(seconds)
        self._noted()

    def count_rejection(self, reason: str) -> None:
        """Count one request that was turned away."""
        self._notes.rejections[reason] += 1

    def count_answer(
        self, policy: str, results: Iterable[Json], decode: float, queue: float
    ) -> None:
        """Count the decisions of one answer, and the seconds that decoding and waiting took."""
        notes = self._notes
        notes.decode.append(decode)
        notes.queue.append(queue)
        for result in results:
            reason = "+".join(result["reasons"]) or "none"
            notes.decisions[policy, result["decision"], reason] += 1
            if uncertainty := result["uncertainty"]:
                notes.members.append(result["members_used"])
                notes.predictive_entropy.append(uncertainty["predictive_entropy"])
                notes.mutual_information.append(uncertainty["mutual_information"])
            notes.size += 1
        self._noted()

    def _noted(self) -> None:
        """Add up before there are so many notes that it takes long."""
        self._notes.size += 1
        if self._notes.size >= MOST_NOTES:
            self.add_up()
