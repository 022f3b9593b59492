from __future__ import annotations

from typing import Any

from benchmarks.serving.chart import draw
from benchmarks.serving.tables import spread, tables


def test_spread_is_the_median_and_the_range() -> None:
    assert spread([3, 1, 2]) == "2 (1–3)"
    assert spread([0.5]) == spread([0.5, 0.5], 1).replace("0.5", "0")
    assert spread([0.123, 0.124], 0, 100) == "12"
    assert spread([None]) == "–"


def canned() -> dict[str, Any]:
    """A report of two rounds with the service and one peer; another peer did not start."""

    def latency(scale: float) -> dict[str, float]:
        return {"p50_ms": scale, "p99_ms": 2 * scale, "p999_ms": 3 * scale, "failed": 0.0}

    def closed_loop(rate: float) -> dict[str, Any]:
        part = {"throughput": rate, "good": 100, "cpu_us": 500.0, **latency(4)}
        parts = dict.fromkeys(("1", "32", "64", "128"), part)
        return {"connections": parts, "capacity": rate, "cpu_us": 500.0, "megabytes": 200.0}

    def load(rate: float) -> dict[str, Any]:
        refusals = {"refused": 0.6, "refusal_p99_ms": 7.0, "retry_after": 1.0}
        return {"offered": rate, "lag_p99_ms": 0.1, **latency(5), **refusals}

    def opened(rate: float) -> dict[str, Any]:
        loads = {name: load(rate) for name in ("idle", "25%", "50%", "80%", "95%", "fixed")}
        return {**loads, "overload": {**load(rate), "goodput_share": 0.97}}

    part = {"throughput": 9.0, "images": 72.0, "cpu_seconds": 0.25, **latency(6)}
    limits = {"uvicorn: hello": [closed_loop(9000), closed_loop(9100)]}
    return {
        "machine": "A machine",
        "options": {
            "rounds": 2,
            "seconds": 6,
            "deadline": 1.0,
            "server_cpus": "1",
            "python": "3.11.2",
            "client_cpus": "0",
        },
        "settings": {"langevin gate": "", "mosec": "batch 32, 1 ms"},
        "requirements": {"mosec": "mosec==1"},
        "tried": {"mosec": {"batch 32, 1 ms": 900.0, "batch 64, 1 ms": 800.0}},
        "failures": {"ray": "not ready: no answer"},
        "inference": [1100.0, 1200.0],
        "turns": {
            "langevin gate": {"64": [2000.0, 3000.0, 2400.0], "128": [2100.0, 2800.0, 2000.0]},
            "mosec": {"64": [900.0, 1000.0, 950.0], "128": [1000.0, 1200.0, 800.0]},
            "uvicorn: hello": {"64": [9000.0, 9100.0, 9050.0], "128": [0.0, 0.0, 0.0]},
        },
        "closed": {
            "langevin gate": [closed_loop(3000), closed_loop(2000)],
            "mosec": [closed_loop(1000)],
            **limits,
        },
        "open": {"langevin gate": [opened(3000), opened(2000)], "mosec": [opened(1000)]},
        "loaded": [
            {
                "langevin gate": [load(900), load(1000)],
                "mosec": [{**load(900), "p99_ms": 40.0}, {**load(1000), "p99_ms": 30.0}],
            }
        ],
        "own_load": [
            {**load(2000), "idle_p50_ms": 2.0},
            {**load(2100), "idle_p50_ms": 2.5},
            {**load(2200), "idle_p50_ms": 5.0},
        ],
        "growth": [{"connections": {"1": part}, "images": {"8": part}}],
    }


def test_tables_of_a_canned_report() -> None:
    text = tables(canned())
    rate = "2500 (2000–3000)"
    for line in (
        f"| langevin gate | {rate} | {rate} | {rate} | {rate} | {rate} | 0.00 | 500 | 0.50 | 200 |",
        "| throughput of langevin gate, beside mosec | 2.50 (2.25–2.75) |",
        "| throughput of langevin gate, beside uvicorn: hello | 0.27 (0.24–0.30) |",
        "| p99 at the load of the best peer, beside its | 0.29 (0.27–0.31) |",
        "| p99 at 80% of its capacity, in p50 when asked 20 times a second | 4.0 (3.0–4.5) |",
        "| p99 at 80% of its capacity, in p50 when asked again at once | 2.5 |",
        "| goodput of mosec under overload (%) | 97 |",
        "| p99 of a refusal (ms) | 7.0 |",
        "| mosec | idle | 1000 | 5.0 / 10.0 / 15.0 | 0.00 | 0.10 |",
        "| langevin gate | 64 | 2400 (2200–2700) | 1.00 (1.00–1.00) |",
        "| mosec | 128 | 1000 (900–1100) | 2.50 (2.25–2.75) |",
        "| langevin gate | 950 (925–975) | 5.0 (5.0–5.0) | 10.0 (10.0–10.0) | 1.00 (1.00–1.00) |",
        "| mosec | 950 (925–975) | 5.0 (5.0–5.0) | 35.0 (32.5–37.5) | 0.29 (0.27–0.31) |",
        "| 2100 (2050–2150) | 2.5 (2.2–3.8) | 5.0 (5.0–5.0) | 10.0 (10.0–10.0) | 4.0 (3.0–4.5) |",
        "| onnxruntime alone, batches of 32 (images) | 1150 (1100–1200) |",
        "| uvicorn: hello (requests) | 9050 (9000–9100) |",
        "| mosec" + 4 * " | 4.0 / 8.0 / 12.0" + " |",
        "| mosec | 95% | 1000 | 5.0 / 10.0 / 15.0 | 0.00 | 0.10 |",
        "| mosec | 1000 | 5.0 / 10.0 / 15.0 | 0.00 | 0.10 |",
        f"| langevin gate | {rate} | 97 | 60 | 7.0 | 100 | 0.10 |",
        "| 1 | 9 | 12.0 | 0.00 |",
        "| 8 | 72 | 12.0 | 0.00 | 0.25 |",
        "| mosec==1 | batch 32, 1 ms: 900; batch 64, 1 ms: 800 | batch 32, 1 ms |",
        "| ray | not ready: no answer |",
    ):
        assert line in text.splitlines()


def test_tables_without_what_did_not_run() -> None:
    report = canned()
    for found in report["open"].values():
        for opened in found:
            del opened["fixed"]
    text = tables({**report, "loaded": [], "own_load": [], "growth": [], "failures": {}})
    assert "| mosec | – | – / – / – | – | – |" in text
    assert "The service did not get this far." in text
    assert "## Failures" not in text


def test_a_bar_for_each_server_and_none_for_the_limits() -> None:
    (axes,) = draw(canned()).axes
    assert [bar.get_width() for bar in axes.patches] == [2400, 1000]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["langevin gate", "mosec"]
