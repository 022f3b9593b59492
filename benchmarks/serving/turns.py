"""Capacity side by side: servers run at once, and are asked in turns of a second.

The speed of a shared machine changes from minute to minute; what one turn measures, one after the
other, it measures of nearly the same machine. For servers that cost nothing while not asked.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from benchmarks.serving import closed, traffic
from benchmarks.serving.measure import Bench
from benchmarks.serving.servers import Server, ServerError, running

CONNECTIONS = (64, 128)
SECONDS = 1

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


def best(rates: Mapping[str, Sequence[float]]) -> tuple[str, Sequence[float]]:
    """The number of connections with the highest median, and the rates of its turns."""
    connections = max(rates, key=lambda number: statistics.median(rates[number]))
    return connections, rates[connections]


def ratios(rates: Rates, one: str, other: str) -> list[float]:
    """What `one` answered in each turn, in units of what `other` did, each at its best."""
    pairs = zip(best(rates[one])[1], best(rates[other])[1], strict=True)
    return [mine / theirs for mine, theirs in pairs if theirs]
