"""What is noted and added up later is what would have been counted one by one."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.metrics import MOST_NOTES, Distribution, Metrics

BOUNDS = st.lists(st.floats(0, 100), min_size=1, max_size=6, unique=True).map(sorted)


def distribution(bounds: list[float]) -> Distribution:
    return Distribution("seconds", "Seconds", buckets=bounds, registry=CollectorRegistry())


def samples(metric: Distribution) -> dict[tuple[str, str], float]:
    (family,) = metric.collect()
    return {(each.name, each.labels.get("le", "")): each.value for each in family.samples}


@given(st.data())
def test_many_values_at_once_are_the_same_as_one_by_one(data: st.DataObject) -> None:
    """In every bucket, bounds and infinities included; the sum to its rounding error."""
    bounds = data.draw(BOUNDS)
    values = data.draw(st.lists(st.sampled_from([*bounds, math.inf]) | st.floats(0, 200)))
    at_once, one_by_one = distribution(bounds), distribution(bounds)
    half = data.draw(st.integers(0, len(values)))
    for part in (values[:half], values[half:]):
        at_once.observe_all(part)
    for value in values:
        one_by_one.observe(value)
    told, expected = samples(at_once), samples(one_by_one)
    total, exact = told.pop(("seconds_sum", "")), expected.pop(("seconds_sum", ""))
    assert told == expected
    assert told["seconds_count", ""] == len(values)
    assert total == exact or math.isclose(total, exact, abs_tol=1e-12 * len(values))


def test_no_values_change_nothing() -> None:
    metric = distribution([1.0])
    metric.observe_all([])
    assert set(samples(metric).values()) == {0.0}


def result(entropy: float | None, members: int = 4) -> dict[str, Any]:
    """The part of an image's answer that is counted; without an entropy it was not inferred."""
    if entropy is None:
        return {"decision": "abstain", "reasons": ["input"], "members_used": 0, "uncertainty": None}
    return {
        "decision": "abstain" if entropy > 0.5 else "accept",
        "reasons": ["ood", "uncertain"] if entropy > 0.5 else [],
        "members_used": members,
        "uncertainty": {"predictive_entropy": entropy, "mutual_information": entropy / 2},
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["/predict", "/models"]),
            st.sampled_from(["GET", "POST", "BREW"]),
            st.sampled_from([200, 422]),
            st.floats(0, 20),
        )
    ),
    st.lists(
        st.tuples(
            st.sampled_from(["default", "strict"]),
            st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=3),
            st.tuples(st.floats(0, 1), st.floats(0, 1)),
        )
    ),
)
def test_a_scrape_tells_all_that_came_before_it(requests, answers):
    metrics = Metrics()
    for request in requests:
        metrics.count_request(*request)
    for policy, entropies, (decode, queue) in answers:
        metrics.count_answer(policy, map(result, entropies), decode, queue)
    first = metrics.text()
    assert metrics.text() == first, "nothing is added twice"

    counted = Counter(
        (route, "other" if method == "BREW" else method, str(code))
        for route, method, code, _ in requests
    )
    for (route, method, code), count in counted.items():
        labels = {"route": route, "method": method, "code": code}
        assert value(metrics, "gate_http_requests_total", **labels) == count
    for route in {route for route, *_ in requests}:
        seconds = [each[-1] for each in requests if each[0] == route]
        name = "gate_http_request_duration_seconds"
        assert value(metrics, f"{name}_count", route=route) == len(seconds)
        assert value(metrics, f"{name}_sum", route=route) == pytest.approx(sum(seconds))
        fast = sum(each <= 0.25 for each in seconds)
        assert value(metrics, f"{name}_bucket", route=route, le="0.25") == fast

    pairs = [(policy, each) for policy, entropies, _ in answers for each in entropies]
    decided = Counter(
        (policy, told["decision"], "+".join(told["reasons"]) or "none")
        for policy, told in ((policy, result(entropy)) for policy, entropy in pairs)
    )
    for (policy, decision, reason), count in decided.items():
        labels = {"policy": policy, "decision": decision, "reason": reason}
        assert value(metrics, "gate_decisions_total", **labels) == count
    inferred = [entropy for _, entropy in pairs if entropy is not None]
    for name, expected in (
        ("gate_predictive_entropy_nats", sum(inferred)),
        ("gate_mutual_information_nats", sum(inferred) / 2),
        ("gate_members_evaluated", 4 * len(inferred)),
    ):
        assert value(metrics, f"{name}_count") == len(inferred)
        assert value(metrics, f"{name}_sum") == pytest.approx(expected)
    for name, labels, number in (
        ("gate_stage_duration_seconds", {"stage": "decode"}, 0),
        ("gate_queue_wait_seconds", {}, 1),
    ):
        assert value(metrics, f"{name}_count", **labels) == len(answers)
        total = sum(times[number] for *_, times in answers)
        assert value(metrics, f"{name}_sum", **labels) == pytest.approx(total)


def test_notes_are_added_up_before_there_are_too_many() -> None:
    """Of requests, and of images: a request may have hundreds of them."""
    metrics, count = Metrics(), 2 * MOST_NOTES + 5
    for _ in range(count):
        metrics.count_request("/models", "GET", 200, 0.01)
        assert metrics._notes.size < MOST_NOTES
    labels = {"route": "/models", "method": "GET", "code": "200"}
    assert value(metrics, "gate_http_requests_total", **labels) == 2 * MOST_NOTES
    metrics.add_up()
    assert value(metrics, "gate_http_requests_total", **labels) == count

    for _ in range(count):
        metrics.count_answer("default", [result(0.1), result(None)], 0.01, 0.02)
        assert metrics._notes.size < MOST_NOTES
    metrics.add_up()
    assert value(metrics, "gate_predictive_entropy_nats_count") == count
    assert value(metrics, "gate_queue_wait_seconds_count") == count


pytestmark = pytest.mark.anyio


async def test_after_some_requests_a_scrape_tells_them_all(client, png):
    for count in range(1, 4):
        await client.post("/predict", content=png)
        lines = (await client.get("/metrics")).text.splitlines()
        for line in (
            f'gate_http_requests_total{{code="200",method="POST",route="/predict"}} {count}.0',
            f'gate_http_request_duration_seconds_count{{route="/predict"}} {count}.0',
            f"gate_queue_wait_seconds_count {count}.0",
            f'gate_stage_duration_seconds_count{{stage="decode"}} {count}.0',
            f"gate_members_evaluated_sum {10 * count}.0",
        ):
            assert line in lines
