"""What certainty costs over HTTP: ensembles of several sizes served side by side.

    python -m benchmarks.serving.sizes --venvs VENVS BUNDLE [BUNDLE ...]

The bundles' ensembles differ in size. Each is served by the service, as it is and with all members,
and by mosec, with the same options of the command as `python -m benchmarks.serving`, which says
more about them. All run at once and answer in turns. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.serving import traffic
from benchmarks.serving.measure import Bench, say
from benchmarks.serving.peers.install import OURS, PEERS, install
from benchmarks.serving.processes import adopt_orphans
from benchmarks.serving.servers import Server, ServerError, answer, ours, running
from benchmarks.serving.tables import quartiled, table
from benchmarks.serving.turns import Rates, best, in_turns, ratios
from models import bundle as bundles
from training.data import DataError, data_directory

PEER = "mosec"
ASKED = 1_000  # images, of which the mean number of members is told
COLUMNS = (
    "members",
    "asked of an image",
    "answers a second",
    "with `members=all`",
    PEER,
    f"beside {PEER}",
)


@dataclass(frozen=True)
class Size:
    """The servers of one ensemble of M members."""

    members: int
    default: Server
    everyone: Server
    peer: Server


def main() -> None:
    options = _options()
    adopt_orphans()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            print(describe("onnxruntime", "uvicorn", "fastapi"))
            print(measure(options, Path(scratch)))
    except (DataError, ServerError, bundles.BundleError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")


def measure(options: argparse.Namespace, scratch: Path) -> str:
    """The table.

    Raises:
        ServerError: the service or the peer cannot be installed, or one of them does not start.
    """
    pngs = traffic.images(data_directory(options.data_dir))
    failures: dict[str, str] = {}
    bench = Bench(options.server_cpus, 1, 1.0, pngs, scratch, say, failures)
    python = install(OURS, options.venvs, options.python) / "bin" / "python"
    venv = install(PEER, options.venvs, options.python)
    sizes = sorted(
        (size_of(path, python, venv) for path in options.bundles), key=lambda size: size.members
    )
    asked = {size.members: mean_members(size.default, bench) for size in sizes}
    os.sched_setaffinity(0, {int(options.client_cpu)})
    servers = [each for size in sizes for each in (size.default, size.everyone, size.peer)]
    rates = in_turns(bench, servers, options.turns)
    if failures:
        raise ServerError("; ".join(f"{name}: {why}" for name, why in failures.items()))
    return compared(sizes, asked, rates)


def size_of(path: Path, python: Path, venv: Path) -> Size:
    """The servers of the bundle at `path`.

    Raises:
        BundleError: it is none.
    """
    bundle = bundles.load(path)
    count = bundle.manifest.members.count
    default, everyone, _ = ours(bundle.path.resolve(), python)
    peer = PEERS[PEER].server(PEERS[PEER].grid[0], venv, bundle.path.resolve())
    named = [replace(each, name=f"{each.name}, {count}") for each in (default, everyone, peer)]
    return Size(count, *named)


def mean_members(server: Server, bench: Bench) -> float:
    """Mean number of members that the images of the traffic are shown to."""
    requests = traffic.single(server.path, bench.pngs[:ASKED])
    with running(server, bench.cpus, requests[0]) as process:
        bodies = [answer(process.port, request)[1] for request in requests]
    used: list[int] = [json.loads(body)["results"][0]["members_used"] for body in bodies]
    return statistics.mean(used)


def compared(sizes: Sequence[Size], asked: dict[int, float], rates: Rates) -> str:
    """Median and quartiles over turns, in Markdown."""
    rows = []
    for size in sizes:
        names = [each.name for each in (size.default, size.everyone, size.peer)]
        answers = [quartiled(best(rates[name])[1]) for name in names]
        ratio = quartiled(ratios(rates, names[0], names[2]), 2)
        rows.append([str(size.members), f"{asked[size.members]:.2f}", *answers, ratio])
    return table(COLUMNS, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.sizes", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundles", type=Path, nargs="+", help="folders")
    parser.add_argument("--data-dir", type=Path, help="folder with data sets")
    parser.add_argument("--venvs", type=Path, default=Path(".venv/peers"), help="of the servers")
    parser.add_argument("--python", default=sys.executable, help="of all servers")
    parser.add_argument("--server-cpus", default="1", help="as taskset has them")
    parser.add_argument("--client-cpu", default="0", help="its number")
    parser.add_argument("--turns", type=int, default=9, help="of 1 s for each server")
    return parser.parse_args()


if __name__ == "__main__":
    main()
