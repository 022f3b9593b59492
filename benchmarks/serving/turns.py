"""Side by side: servers run at once, and are asked in turns.

The speed of a shared machine changes from minute to minute; what one turn measures, one after the
other, it measures of nearly the same machine. For servers that cost nothing while not asked.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from benchmarks.serving import closed, traffic
from benchmarks.serving.measure import FIXED_SHARE, IDLE_RATE, Bench, Figures, at_load
from benchmarks.serving.servers import Server, ServerError, running

CONNECTIONS = (64, 128)
SECONDS = 2

Rates = Mapping[str, Mapping[str, Sequence[float]]]


def in_turns(bench: Bench, servers: Sequence[Server], count: int) -> Rates:
    """Answers a second of every server, by connections, in each of `count` turns.

    A server that does not start is missing, and a failure says why; one that fails in a turn has
    answered nothing in it.
    """
    rates: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        live = []
        for number, server in enumerate(servers):
            requests = traffic.single(server.path, bench.pngs)
            file = traffic.save(requests, bench.scratch / f"requests-{number}")
            try:
                process = stack.enter_context(running(server, bench.cpus, requests[0]))
                closed.drive(process, file, CONNECTIONS[-1], SECONDS)
            except ServerError as error:
                bench.failures[server.name] = str(error)
                bench.say(f"{server.name}: {error}")
                continue
            live.append((server, process, file))
            rates[server.name] = {str(number): [] for number in CONNECTIONS}
        for turn in range(count):
            bench.say(f"turn {turn + 1} of {count}")
            for connections in CONNECTIONS:
                for server, process, file in live:
                    try:
                        rate = closed.drive(process, file, connections, SECONDS)["throughput"]
                    except ServerError:
                        rate = 0.0
                    rates[server.name][str(connections)].append(rate)
    return rates


def at_the_peers_load(
    bench: Bench, server: Server, peer: Server, count: int
) -> dict[str, list[Figures]]:
    """Open loop at 80 % of the peer's capacity of the same turn, of both in each of `count` turns.

    A server that does not start is missing, and a failure says why.
    """
    found: dict[str, list[Figures]] = {server.name: [], peer.name: []}
    requests = traffic.single(peer.path, bench.pngs)
    file = traffic.save(requests, bench.scratch / "requests-of-the-peer")
    try:
        with (
            running(server, bench.cpus, requests[0]) as own,
            running(peer, bench.cpus, requests[0]) as other,
        ):
            for each in (own, other):
                closed.drive(each, file, CONNECTIONS[-1], SECONDS)
            for turn in range(count):
                bench.say(f"at the peer's load, turn {turn + 1} of {count}")
                capacity = closed.drive(other, file, CONNECTIONS[0], SECONDS)["throughput"]
                for name, process in ((server.name, own), (peer.name, other)):
                    figures = at_load(bench, process, requests, FIXED_SHARE * capacity)
                    found[name].append(figures)
    except ServerError as error:
        bench.failures[peer.name] = str(error)
        bench.say(str(error))
    return found


def at_own_load(bench: Bench, server: Server, count: int) -> list[Figures]:
    """Open loop at 80 % of the server's own capacity of the same turn, and its median when idle.

    Nothing, and a failure, if it does not start.
    """
    found: list[Figures] = []
    requests = traffic.single(server.path, bench.pngs)
    file = traffic.save(requests, bench.scratch / "requests-at-own-load")
    try:
        with running(server, bench.cpus, requests[0]) as process:
            closed.drive(process, file, CONNECTIONS[-1], SECONDS)
            for turn in range(count):
                bench.say(f"at its own load, turn {turn + 1} of {count}")
                rates = [closed.drive(process, file, each, SECONDS) for each in CONNECTIONS]
                capacity = max(rate["throughput"] for rate in rates)
                idle = at_load(bench, process, requests, IDLE_RATE)
                busy = at_load(bench, process, requests, FIXED_SHARE * capacity)
                found.append({**busy, "idle_p50_ms": idle["p50_ms"]})
    except ServerError as error:
        bench.failures[server.name] = str(error)
        bench.say(str(error))
    return found


def best(rates: Mapping[str, Sequence[float]]) -> tuple[str, Sequence[float]]:
    """The number of connections with the highest median, and the rates of its turns."""
    connections = max(rates, key=lambda number: statistics.median(rates[number]))
    return connections, rates[connections]


def ratios(rates: Rates, one: str, other: str) -> list[float]:
    """What `one` answered in each turn, in units of what `other` did, each at its best."""
    pairs = zip(best(rates[one])[1], best(rates[other])[1], strict=True)
    return [mine / theirs for mine, theirs in pairs if theirs]
