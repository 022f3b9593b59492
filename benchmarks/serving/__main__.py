"""The service beside other servers of the same ensemble, and beside the limits, on loopback.

    python -m benchmarks.serving --out DIR [--quick]

It needs Linux, wrk and taskset. The service and each peer are installed into venvs of their own
under --venvs, all of the same Python, from requirements/service.lock and
benchmarks/serving/peers/NAME.txt; a peer that cannot be installed or started is reported as such.
Writes serving.json, serving.md and serving.png.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.serving import traffic
from benchmarks.serving.chart import draw
from benchmarks.serving.measure import Bench, best_setting, rounds, say, try_settings
from benchmarks.serving.openloop import CONNECTIONS
from benchmarks.serving.peers.install import OURS, PEERS, install
from benchmarks.serving.processes import adopt_orphans
from benchmarks.serving.servers import QUIET, Server, ServerError, answer, limits, ours, running
from benchmarks.serving.tables import tables
from benchmarks.serving.turns import at_own_load, at_the_peers_load, in_turns
from models import bundle as bundles
from training.data import DataError, data_directory
from training.figures import save

FILES = CONNECTIONS + 500


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    out: Path
    bundle: Path
    data_dir: Path | None
    peers: str
    venvs: Path
    python: str
    settings: Path | None
    server_cpus: str
    client_cpus: str
    turns: int
    rounds: int
    seconds: int
    deadline: float
    quick: bool


def main() -> None:
    options = _options()
    for program in ("wrk", "taskset"):
        if shutil.which(program) is None:
            sys.exit(f"error: {program} is not installed")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    adopt_orphans()
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < FILES:
        sys.exit(f"error: {FILES} open files are needed, and {files} allowed (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    os.sched_setaffinity(0, _cpus(options.client_cpus))
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            report = measure(options, Path(scratch))
    except (DataError, ServerError, bundles.BundleError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")
    (options.out / "serving.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    (options.out / "serving.md").write_text(tables(report))
    save(draw(report), options.out / "serving.png")
    print(tables(report))


def measure(options: Options, scratch: Path) -> dict[str, Any]:
    """The whole report.

    Raises:
        ServerError: the service itself does not start, or a name in `peers` is unknown.
    """
    bundle = bundles.load(options.bundle).path.resolve()
    failures: dict[str, str] = {}
    bench = Bench(
        options.server_cpus,
        options.seconds,
        options.deadline,
        traffic.images(data_directory(options.data_dir)),
        scratch,
        say,
        failures,
    )
    python = install(OURS, options.venvs, options.python) / "bin" / "python"
    own = ours(bundle, python)
    servers, tried = [*own], {}
    canned = _canned(servers[0], bench)
    names = [name for name in options.peers.split(",") if name]
    known = json.loads(options.settings.read_text())["tried"] if options.settings else {}
    if unknown := set(names) - PEERS.keys():
        raise ServerError(f"no such peer: {', '.join(sorted(unknown))}")
    for name in names:
        say(f"{name}: install, and try settings")
        peer = PEERS[name]
        try:
            venv = install(name, options.venvs, options.python)
        except ServerError as error:
            failures[name] = str(error)
            say(f"{name}: {error}")
            continue
        grid = peer.grid[:2] if options.quick else peer.grid
        candidates = [peer.server(setting, venv, bundle) for setting in grid]
        if name in known:
            tried[name] = known[name]
        else:
            tried[name] = try_settings(bench, candidates)
        servers += best_setting(candidates, tried[name])
    inference = _inference_rate(options, bundle, python)
    ceilings = limits(canned, python)
    best = _best_peer(servers, tried)
    turns = in_turns(bench, [*own, *best, *ceilings], options.turns)
    loaded = [at_the_peers_load(bench, own[0], each, options.turns) for each in best]
    own_load = at_own_load(bench, own[0], options.turns)
    figures = rounds(bench, options.rounds, servers, ceilings, set(names))
    return {
        "machine": describe("onnxruntime", "uvicorn", "fastapi"),
        "options": {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "deadline": options.deadline,
            "server_cpus": options.server_cpus,
            "client_cpus": options.client_cpus,
            "python": _version(python),
        },
        "settings": {server.name: server.settings for server in servers},
        "requirements": {name: _requirements(name) for name in tried},
        "tried": tried,
        "failures": failures,
        "inference": inference,
        "turns": turns,
        "loaded": loaded,
        "own_load": own_load,
        **figures,
    }


def _best_peer(servers: list[Server], tried: dict[str, dict[str, float]]) -> list[Server]:
    """The fastest, if there is any: the only one beside ours, as some are busy even when idle."""
    reached = {name: max(rates.values(), default=0.0) for name, rates in tried.items()}
    best = max(reached, key=lambda name: reached[name], default=None)
    return [server for server in servers if server.name == best]


def _canned(server: Server, bench: Bench) -> Path:
    """A file with an answer of ours."""
    request = traffic.single(server.path, bench.pngs[:1])[0]
    file = bench.scratch / "answer.json"
    with running(server, bench.cpus, request) as process:
        file.write_bytes(answer(process.port, request)[1])
    return file


def _inference_rate(options: Options, bundle: Path, python: Path) -> list[float]:
    module = [str(python), "-m", "benchmarks.serving.limits"]
    command = ["taskset", "-c", options.server_cpus.split(",")[0].split("-")[0], *module]
    arguments = ["inference", str(bundle), str(options.seconds)]
    environment = {**os.environ, **QUIET}
    return [
        float(subprocess.check_output([*command, *arguments], env=environment, text=True))
        for _ in range(options.rounds)
    ]


def _version(python: Path) -> str:
    text = subprocess.check_output([python, "--version"], text=True)
    return text.removeprefix("Python").strip()


def _requirements(name: str) -> str:
    (peer,) = (line for line in _lines(name) if line.startswith(name))
    return peer


def _lines(name: str) -> list[str]:
    return (Path(__file__).parent / "peers" / f"{name}.txt").read_text().splitlines()


def _cpus(text: str) -> set[int]:
    """CPUs of a list as taskset has it: 0,2-3."""
    ranges = [part.partition("-")[::2] for part in text.split(",")]
    return {cpu for low, high in ranges for cpu in range(int(low), int(high or low) + 1)}


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--bundle", type=Path, default=Path("models/pretrained/mnist"))
    parser.add_argument("--data-dir", type=Path, help="folder with data sets")
    parser.add_argument("--peers", default=",".join(PEERS), help="which, or '' for none")
    parser.add_argument("--venvs", type=Path, default=Path(".venv/peers"), help="of the peers")
    parser.add_argument("--python", default=sys.executable, help="of all servers")
    parser.add_argument("--settings", type=Path, help="serving.json that tried the peers' before")
    parser.add_argument("--server-cpus", default="1", help="as taskset has them")
    parser.add_argument("--client-cpus", default="0", help="as taskset has them")
    parser.add_argument("--turns", type=int, default=15, help="side by side, of 1 s each")
    parser.add_argument("--rounds", type=int, default=3, help="of each server alone")
    parser.add_argument("--seconds", type=int, default=6, help="of one measurement")
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds, under overload")
    parser.add_argument("--quick", action="store_true", help="1 round of 2 s, to try it out")
    options = Options(**vars(parser.parse_args()))
    return replace(options, turns=2, rounds=1, seconds=2) if options.quick else options


if __name__ == "__main__":
    main()
