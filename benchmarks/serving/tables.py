"""Markdown tables of a report: the median over rounds, and the range."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.serving.measure import (
    CONNECTIONS,
    FEW_CONNECTIONS,
    FIXED_SHARE,
    IDLE_RATE,
    OVERLOAD,
    PATIENCE_SECONDS,
    SHARES,
)
from benchmarks.serving.turns import SECONDS, best, ratios

Figures = dict[str, Any]
NONE = "–"


def spread(values: Iterable[float | None], decimals: int = 0, scale: float = 1) -> str:
    """Median (least–largest) of values, or the value if they are all printed alike."""
    known = sorted(scale * value for value in values if value is not None)
    if not known:
        return NONE
    low, middle, high = (
        f"{value:.{decimals}f}" for value in (known[0], statistics.median(known), known[-1])
    )
    return middle if low == high else f"{middle} ({low}–{high})"


def tables(report: Figures) -> str:
    """All of them, as a document."""
    options = report["options"]
    parts = [
        f"{report['machine']}. Servers have Python {options['python']} and CPU "
        f"{options['server_cpus']}, clients CPU "
        f"{options['client_cpus']}, {options['seconds']} s a measurement, rounds: "
        f"{options['rounds']}. Median, and the range over rounds.",
        "## In ratios",
        "Throughput, and both loads: median and quartiles of turns. The rest: "
        "median (least–largest) of rounds, each ratio within a round.",
        _ratios(report),
        "## Side by side",
        f"The service and the best peer run at once, and answer in turns of {SECONDS} s, closed "
        "loop; each at the number of connections that suits it. Median and quartiles over turns, "
        "and of the ratios in a turn.",
        _side_by_side(report),
        f"Open loop at {FIXED_SHARE:.0%} of that peer's capacity, which is measured in each turn.",
        *map(_at_the_peers_load, report["loaded"]),
        f"Open loop at {FIXED_SHARE:.0%} of the service's own capacity, measured in each turn, as "
        f"its median is when asked {IDLE_RATE:g} times a second.",
        _at_own_load(report["own_load"]),
        "## Capacity",
        "Closed loop, answers a second by connections. Memory is the sum over a server's "
        "processes of what is resident: pages that they share count once for each. The service "
        "also decides, explains and tests for unfamiliar images; a peer only flags.",
        _capacity(report),
        "## Limits",
        _limits(report),
        "## Latency, closed loop",
        "p50 / p99 / p99.9 in ms by connections.",
        _closed_latency(report),
        "## Latency, open loop",
        f"Poisson arrivals, {IDLE_RATE:g} a second when idle, else at a share of the server's own "
        "capacity; latency counts from the "
        "moment a request was due. A request without an answer of status 200 in "
        f"{PATIENCE_SECONDS:g} s counts as that long. Client late: p99 of how long after its "
        "moment a request left.",
        _open_latency(report),
        f"## At {FIXED_SHARE:.0%} of the best peer's capacity",
        _fixed(report),
        f"## Overload: {OVERLOAD} times the capacity",
        f"Goodput is what is answered with 200 within {options['deadline']:g} s, as a share of "
        "capacity; a client hangs up then. Refusals are answers of status 503 or 429.",
        _overload(report),
        "## Cost as work grows",
        *_growth(report),
        "## Settings",
        _settings(report),
    ]
    if report["failures"]:
        parts += ["## Failures", _failures(report)]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """One table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _of(rounds: Sequence[Figures], *keys: str) -> list[float | None]:
    """A figure of every round, by its path; None where a round has none."""

    def find(figures: Any) -> float | None:
        for key in keys:
            figures = figures.get(key) if figures is not None else None
        found: float | None = figures
        return found

    return [find(figures) for figures in rounds]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third; of a single value, itself."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def quartiled(values: Sequence[float], decimals: int = 0) -> str:
    """Median (first–third quartile) of values."""
    low, high = quartiles(values)
    middle = statistics.median(values)
    return f"{middle:.{decimals}f} ({low:.{decimals}f}–{high:.{decimals}f})"


def _side_by_side(report: Figures) -> str:
    turns, ours = report["turns"], next(iter(report["settings"]))
    rows = []
    for name, rates in turns.items():
        connections, values = best(rates)
        ratio = quartiled(ratios(turns, ours, name), 2) if ours in turns else NONE
        rows.append([name, connections, quartiled(values, 0), ratio])
    return table(["server", "connections", "answers a second", f"{ours} / it"], rows)


def _ratios(report: Figures) -> str:
    """What the service is measured by."""
    turns, peers = report["turns"], report["tried"]
    ours = next(iter(report["settings"]))
    rows = [
        [f"throughput of {name}, beside {other}", quartiled(ratios(turns, name, other), 2)]
        for name in report["settings"]
        if name in turns and name not in peers
        for other in turns
        if other in peers or (name == ours and other not in report["settings"])
    ]
    for found in report["loaded"]:
        if beside := _p99_beside(*found.values()):
            rows.append(["p99 at the load of the best peer, beside its", quartiled(beside, 2)])
    closed, opened = report["closed"].get(ours, []), report["open"].get(ours, [])
    busy, alone = f"{FIXED_SHARE:.0%}", str(CONNECTIONS[0])
    if turns_at_own := report["own_load"]:
        row = f"p99 at {busy} of its capacity, in p50 when asked {IDLE_RATE:g} times a second"
        rows.append([row, quartiled(_p99_in_idle(turns_at_own), 1)])
    pairs = zip(
        _of(opened, busy, "p99_ms"), _of(closed, "connections", alone, "p50_ms"), strict=False
    )
    shares = [under_way / ms for under_way, ms in pairs if under_way and ms]
    rows.append(
        [f"p99 at {busy} of its capacity, in p50 when asked again at once", spread(shares, 1)]
    )
    for name, found in report["open"].items():
        if name == ours or name in turns:
            column = OVERLOAD_COLUMNS["goodput (%)"](found)
            rows.append([f"goodput of {name} under overload (%)", column])
    rows.append(["p99 of a refusal (ms)", OVERLOAD_COLUMNS["refusal p99 (ms)"](opened)])
    return table(["", "measured"], rows)


def _p99_beside(ours: Sequence[Figures], others: Sequence[Figures]) -> list[float]:
    """p99 of ours in units of the other's, turn by turn."""
    return [mine["p99_ms"] / theirs["p99_ms"] for mine, theirs in zip(ours, others, strict=True)]


def _at_the_peers_load(found: Mapping[str, Sequence[Figures]]) -> str:
    ours = next(iter(found.values()))
    if not ours:
        return NONE
    rows = []
    for name, turns in found.items():
        figures = [quartiled([each[key] for each in turns], 1) for key in ("p50_ms", "p99_ms")]
        ratio = quartiled(_p99_beside(ours, turns), 2)
        rate = quartiled([each["offered"] for each in turns])
        rows.append([name, rate, *figures, ratio])
    return table(["server", "requests/s", "p50 (ms)", "p99 (ms)", "p99 of ours / its"], rows)


def _p99_in_idle(found: Sequence[Figures]) -> list[float]:
    """p99 in units of the median when idle, turn by turn."""
    return [each["p99_ms"] / each["idle_p50_ms"] for each in found]


def _at_own_load(found: Sequence[Figures]) -> str:
    if not found:
        return NONE
    figures = [
        quartiled([each[key] for each in found], decimals)
        for key, decimals in (("offered", 0), ("idle_p50_ms", 1), ("p50_ms", 1), ("p99_ms", 1))
    ]
    header = ["requests/s", "idle p50 (ms)", "p50 (ms)", "p99 (ms)", "p99 / idle p50"]
    return table(header, [[*figures, quartiled(_p99_in_idle(found), 1)]])


def _capacity(report: Figures) -> str:
    return table(
        [
            "server",
            *map(str, CONNECTIONS),
            "capacity",
            "failed (%)",
            "CPU µs a request",
            "CPU s a 1,000 images",
            "memory (MB)",
        ],
        (
            [
                name,
                *(spread(_of(found, "connections", str(n), "throughput")) for n in CONNECTIONS),
                spread(_of(found, "capacity")),
                spread([_worst(figures) for figures in found], 2, 100),
                spread(_of(found, "cpu_us")),
                spread(_of(found, "cpu_us"), 2, 1e-3),
                spread(_of(found, "megabytes")),
            ]
            for name, found in report["closed"].items()
        ),
    )


def _worst(figures: Figures) -> float:
    worst: float = max(part["failed"] for part in figures["connections"].values())
    return worst


def _limits(report: Figures) -> str:
    rows = [["onnxruntime alone, batches of 32 (images)", spread(report["inference"])]]
    rows += [
        [f"{name} (requests)", spread(_of(found, "capacity"))]
        for name, found in report["closed"].items()
        if name not in report["settings"]
    ]
    return table(["", "a second"], rows)


def _percentiles(rounds: Sequence[Figures], *keys: str) -> str:
    return " / ".join(
        spread(_of(rounds, *keys, name), 1) for name in ("p50_ms", "p99_ms", "p999_ms")
    )


def _closed_latency(report: Figures) -> str:
    return table(
        ["server", *map(str, CONNECTIONS)],
        (
            [name, *(_percentiles(found, "connections", str(n)) for n in CONNECTIONS)]
            for name, found in report["closed"].items()
        ),
    )


def _open_latency(report: Figures) -> str:
    return table(
        [
            "server",
            "load",
            "requests/s",
            "p50 / p99 / p99.9 (ms)",
            "failed (%)",
            "client late (ms)",
        ],
        (
            [name, load, *_open_row(found, load)]
            for name, found in report["open"].items()
            for load in ("idle", *(f"{share:.0%}" for share in SHARES))
        ),
    )


def _open_row(rounds: Sequence[Figures], load: str) -> list[str]:
    return [
        spread(_of(rounds, load, "offered")),
        _percentiles(rounds, load),
        spread(_of(rounds, load, "failed"), 2, 100),
        spread(_of(rounds, load, "lag_p99_ms"), 2),
    ]


def _fixed(report: Figures) -> str:
    return table(
        ["server", "requests/s", "p50 / p99 / p99.9 (ms)", "failed (%)", "client late (ms)"],
        ([name, *_open_row(found, "fixed")] for name, found in report["open"].items()),
    )


OVERLOAD_COLUMNS: Mapping[str, Callable[[Sequence[Figures]], str]] = {
    "requests/s": lambda rounds: spread(_of(rounds, "overload", "offered")),
    "goodput (%)": lambda rounds: spread(_of(rounds, "overload", "goodput_share"), 0, 100),
    "refused (%)": lambda rounds: spread(_of(rounds, "overload", "refused"), 0, 100),
    "refusal p99 (ms)": lambda rounds: spread(_of(rounds, "overload", "refusal_p99_ms"), 1),
    "with Retry-After (%)": lambda rounds: spread(_of(rounds, "overload", "retry_after"), 0, 100),
    "client late (ms)": lambda rounds: spread(_of(rounds, "overload", "lag_p99_ms"), 2),
}


def _overload(report: Figures) -> str:
    return table(
        ["server", *OVERLOAD_COLUMNS],
        (
            [name, *(column(found) for column in OVERLOAD_COLUMNS.values())]
            for name, found in report["open"].items()
        ),
    )


def _growth(report: Figures) -> list[str]:
    rounds = report["growth"]
    if not rounds:
        return ["The service did not get this far."]
    return [
        table(
            ["connections", "requests/s", "p99 (ms)", "failed (%)"],
            (
                [
                    count,
                    spread(_of(rounds, "connections", count, "throughput")),
                    spread(_of(rounds, "connections", count, "p99_ms"), 1),
                    spread(_of(rounds, "connections", count, "failed"), 2, 100),
                ]
                for count in rounds[0]["connections"]
            ),
        ),
        f"Images in one request (multipart), {FEW_CONNECTIONS} connections.",
        table(
            ["images", "images/s", "p99 (ms)", "failed (%)", "CPU s a 1,000 images"],
            (
                [
                    size,
                    spread(_of(rounds, "images", size, "images")),
                    spread(_of(rounds, "images", size, "p99_ms"), 1),
                    spread(_of(rounds, "images", size, "failed"), 2, 100),
                    spread(_of(rounds, "images", size, "cpu_seconds"), 2),
                ]
                for size in rounds[0]["images"]
            ),
        ),
    ]


def _settings(report: Figures) -> str:
    return table(
        ["server", f"tried (requests/s at {CONNECTIONS[-1]} connections)", "kept"],
        (
            [
                report["requirements"][name],
                "; ".join(f"{setting}: {rate:.0f}" for setting, rate in tried.items()) or NONE,
                report["settings"].get(name, NONE),
            ]
            for name, tried in report["tried"].items()
        ),
    )


def _failures(report: Figures) -> str:
    return table(["server", "why"], report["failures"].items())
