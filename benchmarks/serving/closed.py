"""Closed loop: so many connections, each sending its next request after the last answer, by wrk."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from benchmarks.serving.servers import Running, ServerError

TIMEOUT_SECONDS = 10
TAIL_SECONDS = 0.5  # in which a server finishes what no client waits for any more
SCRIPT = """\
local requests, position = {}, 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  while true do
    local length = file:read("*n")
    if not length then break end
    file:read(1)
    requests[#requests + 1] = file:read(length)
  end
  file:close()
end

function request()
  position = position % #requests + 1
  return requests[position]
end

function done(summary, latency)
  local errors = summary.errors
  io.write("\\n", string.format(
    '{"answers":%d,"microseconds":%d,"refused":%d,"broken":%d,"p50":%f,"p99":%f,"p999":%f}',
    summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)), "\\n")
end
"""


def drive(server: Running, requests: Path, connections: int, seconds: int) -> dict[str, float]:
    """One measurement, with the requests of a file of `traffic.save`, again and again; and a rest.

    Returns:
        `throughput` in answers of status 200 a second, `failed` as a share of the requests, and
        the latencies `p50_ms`, `p99_ms`, `p999_ms` of all answers.

    Raises:
        ServerError: wrk failed, or nothing was answered.
    """
    script = requests.with_name("wrk.lua")
    script.write_text(SCRIPT)
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT_SECONDS}s"]
    command = ["wrk", *options, "-s", str(script), server.url, "--", str(requests)]
    patience = seconds + 3 * TIMEOUT_SECONDS
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired as error:
        raise ServerError("wrk did not end") from error
    time.sleep(TAIL_SECONDS)
    if done.returncode or not done.stdout:
        raise ServerError(f"wrk: {(done.stderr or done.stdout).strip()}")
    return figures(json.loads(done.stdout.splitlines()[-1]))


def figures(counted: dict[str, float]) -> dict[str, float]:
    """What `drive` returns, from what the script prints.

    Raises:
        ServerError: nothing was answered.
    """
    good = counted["answers"] - counted["refused"]
    if good <= 0:
        raise ServerError("no request was answered with 200")
    return {
        "throughput": 1e6 * good / counted["microseconds"],
        "good": good,
        "failed": 1 - good / (counted["answers"] + counted["broken"]),
        "p50_ms": counted["p50"] / 1000,
        "p99_ms": counted["p99"] / 1000,
        "p999_ms": counted["p999"] / 1000,
    }
