"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.engines.parity import Parity, verdict
from benchmarks.engines.timing import Least

Times = Mapping[int, Mapping[str, Least]]
"""By images in a batch and by variant."""


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first row of cells names the columns."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def speed(times: Times, failures: Mapping[str, str]) -> str:
    """µs of CPU an image, one row a variant; one that failed says why."""
    names = list(next(iter(times.values())))
    rows = [
        [name, *(_micro(least[name].cpu, batch) for batch, least in times.items())]
        for name in names
    ]
    none = [""] * (len(times) - 1)
    rows += [[name, f"failed: {reason}", *none] for name, reason in failures.items()]
    return markdown(["µs an image at batch", *map(str, times)], rows)


def parities(parity: Mapping[str, Parity], times: Times, served: str) -> str:
    """How the answers of each variant differ from those that are served, and the verdict."""
    rows = []
    for name, each in parity.items():
        ratios = {batch: least[name].cpu / least[served].cpu for batch, least in times.items()}
        counts = map(str, (each.labels, each.accepted, each.flagged))
        rows.append([name, f"{each.probability:.1e}", *counts, verdict(each, ratios)])
    header = ["variant", "largest Δ of a mean probability", "labels", "acceptances", "flags"]
    return markdown([*header, "verdict"], rows)


def threads(times: Mapping[int, Mapping[int, Mapping[int, Least]]]) -> str:
    """Wall and CPU time an image, by batch, by members and by threads."""
    counts = list(next(iter(next(iter(times.values())).values())))
    rows = [
        [
            str(batch),
            str(members),
            *(f"{_micro(a.wall, batch)} / {_micro(a.cpu, batch)}" for a in least.values()),
        ]
        for batch, by_members in times.items()
        for members, least in by_members.items()
    ]
    return markdown(["batch", "members", *(f"{_counted(count)}" for count in counts)], rows)


def members(times: Mapping[int, Least], batch: int) -> str:
    """µs an image, and a member and image, by members."""
    rows = [
        [str(size), _micro(least.cpu, batch), _micro(least.cpu, batch * size)]
        for size, least in times.items()
    ]
    return markdown(["members", "µs an image", "µs a member and image"], rows)


def pixels(times: Mapping[tuple[int, int], Least], batch: int, group: int) -> str:
    """µs an image, and beside the smallest, by pixels on a side."""
    smallest = min(times)
    rows = []
    for (side, weights), least in times.items():
        more = (side / smallest[0]) ** 2
        ratio = least.cpu / times[smallest].cpu
        cells = f"{side} × {side}", f"{weights:,}", f"{more:.1f}", f"{ratio:.1f}"
        rows.append([*cells, _micro(least.cpu, batch), _micro(least.cpu, batch * group)])
    header = ["image", "weights of a member", "× pixels", "× time"]
    return markdown([*header, "µs an image", "µs a member and image"], rows)


def _micro(seconds: float, count: int) -> str:
    micro = 1e6 * seconds / count
    return f"{micro:.0f}" if micro >= 100 else f"{micro:.1f}"


def _counted(threads: int) -> str:
    return f"{threads} thread" if threads == 1 else f"{threads} threads"
