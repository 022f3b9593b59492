"""What is measured of a server, and in which order: servers take turns in every round."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from benchmarks.serving import closed, openloop, traffic
from benchmarks.serving.processes import usage
from benchmarks.serving.servers import Running, Server, ServerError, running

A = TypeVar("A")
Figures: TypeAlias = dict[str, Any]

CONNECTIONS = (1, 32, 64, 128)
SHARES = (0.25, 0.5, 0.8, 0.95)
FIXED_SHARE = 0.8
IDLE_RATE = 20.0  # requests a second, of a server that has next to nothing to do
OVERLOAD = 3
PATIENCE_SECONDS = 5.0
GROWTH_CONNECTIONS = (1, 4, 16, 64, 256, 1_000)
GROWTH_IMAGES = (1, 8, 64, 256)
FEW_CONNECTIONS = 2
WARM_UP_SECONDS = 1
PROBE_SECONDS = 2  # of capacity, before a load that is a share of it
REST_SECONDS = 1.0  # for a server that was overloaded to come back


@dataclass(frozen=True)
class Bench:
    """Where servers run, for how many seconds a measurement lasts, and what is sent.

    Attributes:
        cpus: of the server, as taskset has them.
        seconds: of one measurement.
        deadline: seconds that an answer is worth waiting for under overload.
        pngs: the images.
        scratch: a folder for files of requests.
        say: takes a line of progress.
        failures: why a server is missing from the figures, by its name; filled as it happens.
    """

    cpus: str
    seconds: int
    deadline: float
    pngs: list[bytes]
    scratch: Path
    say: Callable[[str], None]
    failures: dict[str, str]

    def attempt(self, server: Server, measure: Callable[[Bench, Server, Running], A]) -> A | None:
        """Start the server, warm it up, and measure; None, and a failure, if that went wrong."""
        first = traffic.single(server.path, self.pngs[:1])[0]
        try:
            with running(server, self.cpus, first) as process:
                closed.drive(process, self.file(server), CONNECTIONS[-1], WARM_UP_SECONDS)
                return measure(self, server, process)
        except ServerError as error:
            self.failures[server.name] = str(error)
            self.say(f"{server.name}: {error}")
            return None

    def file(self, server: Server) -> Path:
        """A file with a server's requests of one image."""
        return traffic.save(traffic.single(server.path, self.pngs), self.scratch / "requests")


def say(line: str) -> None:
    """Tell of progress."""
    print(line, file=sys.stderr, flush=True)


def rounds(
    bench: Bench, count: int, servers: list[Server], limits: list[Server], rivals: set[str]
) -> Figures:
    """Every figure of every round; the cost as work grows is that of the first server.

    Returns:
        `closed` and `open`: a list over rounds for each server; `growth`: a list over rounds.
        A round in which a server failed is missing. `open` has `fixed` only where one of the
        `rivals` answered: it is the same rate for all, 80 % of the best rival's capacity.
    """
    in_closed: dict[str, list[Figures]] = {}
    in_open: dict[str, list[Figures]] = {}
    growth: list[Figures] = []
    for turn in range(count):
        bench.say(f"round {turn + 1} of {count}: closed loop")
        reached: dict[str, Figures] = {}
        for server in [*servers, *limits]:
            if found := bench.attempt(server, in_closed_loop):
                in_closed.setdefault(server.name, []).append(found)
                reached[server.name] = found
        best = max((reached[name]["capacity"] for name in rivals & reached.keys()), default=None)
        bench.say(f"round {turn + 1} of {count}: open loop")
        for server in servers:
            if found := reached.get(server.name):
                measure = partial(in_open_loop, connections=found["best_connections"], best=best)
                if opened := bench.attempt(server, measure):
                    in_open.setdefault(server.name, []).append(opened)
        if servers[0].name in reached and (grown := bench.attempt(servers[0], as_work_grows)):
            growth.append(grown)
    return {"closed": in_closed, "open": in_open, "growth": growth}


def try_settings(bench: Bench, candidates: list[Server]) -> Figures:
    """Throughput of a server by its settings."""
    tried = {}
    for server in candidates:
        throughput = bench.attempt(server, _throughput)
        if throughput is None:
            break
        bench.say(f"{server.name}, {server.settings}: {throughput:.0f}/s")
        tried[server.settings] = throughput
    return tried


def best_setting(candidates: list[Server], tried: Figures) -> list[Server]:
    """The candidate with the highest throughput; none if none was measured."""
    best = max(tried, key=lambda settings: tried[settings], default=None)
    return [server for server in candidates if server.settings == best]


def in_closed_loop(bench: Bench, server: Server, process: Running) -> Figures:
    """Throughput and latency at each number of connections; CPU time and memory at the largest."""
    file, by_connections = bench.file(server), {}
    for connections in CONNECTIONS:
        before = usage()
        found = closed.drive(process, file, connections, bench.seconds)
        after = usage()
        found["cpu_us"] = 1e6 * (after.cpu_seconds - before.cpu_seconds) / found["good"]
        by_connections[str(connections)] = found
    number = max(by_connections, key=lambda number: by_connections[number]["throughput"])
    best = by_connections[number]
    bench.say(f"{server.name}: {best['throughput']:.0f}/s")
    return {
        "connections": by_connections,
        "best_connections": int(number),
        "capacity": best["throughput"],
        "cpu_us": best["cpu_us"],
        "megabytes": after.megabytes,
    }


def in_open_loop(
    bench: Bench, server: Server, process: Running, connections: int, best: float | None
) -> Figures:
    """Latency when idle, at shares of capacity, at 80 % of the `best` rival's, under overload.

    The capacity is measured again before each share of it, for two seconds: a shared machine's
    speed changes within minutes, and 80 % of what it was may be more than all of what it is.
    """
    requests, file = traffic.single(server.path, bench.pngs), bench.file(server)
    found: Figures = {"idle": at_load(bench, process, requests, IDLE_RATE)}
    for share in SHARES:
        capacity = closed.drive(process, file, connections, PROBE_SECONDS)["throughput"]
        found[f"{share:.0%}"] = at_load(bench, process, requests, share * capacity)
    if best is not None:
        found["fixed"] = at_load(bench, process, requests, FIXED_SHARE * best)
    overload = at_load(bench, process, requests, OVERLOAD * capacity, bench.deadline)
    overload["goodput_share"] = overload["goodput"] / capacity
    bench.say(f"{server.name}: under overload {100 * overload['goodput_share']:.0f} % of capacity")
    return {**found, "overload": overload}


def at_load(
    bench: Bench,
    process: Running,
    requests: Sequence[bytes],
    rate: float,
    patience: float = PATIENCE_SECONDS,
) -> Figures:
    """Open loop at `rate` requests a second, and a rest."""
    due = openloop.arrivals(rate, bench.seconds)
    outcome = openloop.drive(process.port, requests, due, patience)
    time.sleep(REST_SECONDS)
    return openloop.figures(outcome, patience, bench.seconds)


def as_work_grows(bench: Bench, server: Server, process: Running) -> Figures:
    """Closed loop over numbers of connections, and over images in one request."""
    single = bench.file(server)
    connections = {
        str(count): _work(bench, process, single, count, 1) for count in GROWTH_CONNECTIONS
    }
    images = {}
    for size in GROWTH_IMAGES:
        requests = traffic.multipart(server.path, bench.pngs, size)
        file = traffic.save(requests, bench.scratch / "forms")
        images[str(size)] = _work(bench, process, file, FEW_CONNECTIONS, size)
    bench.say(f"{server.name}: cost as work grows")
    return {"connections": connections, "images": images}


def _work(
    bench: Bench, process: Running, requests: Path, connections: int, size: int
) -> Figures | None:
    """Closed loop of requests of `size` images; None if not one was answered with 200."""
    before = usage().cpu_seconds
    try:
        found: Figures = closed.drive(process, requests, connections, bench.seconds)
    except ServerError as error:
        bench.say(f"{connections} connections, {size} images a request: {error}")
        return None
    found["images"] = size * found["throughput"]
    found["cpu_seconds"] = 1000 * (usage().cpu_seconds - before) / (size * found["good"])
    return found


def _throughput(bench: Bench, server: Server, process: Running) -> float:
    file = bench.file(server)
    return closed.drive(process, file, CONNECTIONS[-1], bench.seconds)["throughput"]
