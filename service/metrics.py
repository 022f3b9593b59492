"""Prometheus metrics of one application: its own registry, and labels from closed sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The counters, gauges and histograms, all named `gate_*`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "gate_http_requests", "HTTP requests", ("route", "method", "code"), registry=registry
        )
        self.request_seconds = Histogram(
            "gate_http_request_duration_seconds",
            "Time from a request's head to its answer",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.images = Counter("gate_inference_images", "Images inferred", registry=registry)
        self.executions = Counter("gate_inference_executions", "Inference steps", registry=registry)
        self.batch_size = Histogram(
            "gate_batch_size", "Images in one inference step", buckets=_SIZES, registry=registry
        )
        self.queue_images = Gauge("gate_queue_images", "Images that wait", registry=registry)
        self.queue_wait = Histogram(
            "gate_queue_wait_seconds", "Time in the queue", buckets=_SECONDS, registry=registry
        )
        self.stages = Histogram(
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
        self.predictive_entropy = Histogram(
            "gate_predictive_entropy_nats", "Predictive entropy", buckets=_NATS, registry=registry
        )
        self.cache_hits = Counter(
            "gate_cache_hits", "Images answered by evidence that was kept", registry=registry
        )
        self.members = Histogram(
            "gate_members_evaluated",
            "Members that an image was shown to",
            buckets=_SIZES,
            registry=registry,
        )
        self.mutual_information = Histogram(
            "gate_mutual_information_nats", "Mutual information", buckets=_NATS, registry=registry
        )
        self.bundle = Gauge(
            "gate_bundle_info",
            "The bundle that is served",
            ("name", "version", "digest", "members"),
            registry=registry,
        )

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def serve(self, model: Model, queued: Callable[[], int]) -> None:
        """Tell which model is served, and where to read the queue's length."""
        manifest = model.manifest
        self.bundle.labels(
            manifest.name, manifest.version, model.bundle.digest, str(model.runtime.members)
        ).set(1)
        self.queue_images.set_function(queued)

    def count_step(self, images: int, stage: int, seconds: float) -> None:
        """Count one inference step: so many images, shown to the group of members `stage`."""
        self.executions.inc()
        if stage == 0:
            self.images.inc(images)
        self.batch_size.observe(images)
        self.stages.labels("infer").observe(seconds)

    def count_request(self, route: str, method: str, code: int, seconds: float) -> None:
        """Count one HTTP request by its route's template."""
        known = method if method in METHODS else "other"
        self.requests.labels(route, known, str(code)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def count_results(self, policy: str, results: Iterable[Json]) -> None:
        """Count the decisions of one answer."""
        for result in results:
            reason = "+".join(result["reasons"]) or "none"
            self.decisions.labels(policy, result["decision"], reason).inc()
            if (uncertainty := result["uncertainty"]) is not None:
                self.members.observe(result["members_used"])
                self.predictive_entropy.observe(uncertainty["predictive_entropy"])
                self.mutual_information.observe(uncertainty["mutual_information"])
