"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.engines.parity import Parity, verdict
from benchmarks.timing import Least

Times = Mapping[str, Mapping[str, Least]]
"""By kind of batch and by variant."""


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of these columns."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def speed(times: Times, failures: Mapping[str, str]) -> str:
    """µs of CPU an image, one row a variant; one that failed says why."""
    names = list(next(iter(times.values())))
    rows = [[name, *(_micro(least[name].cpu) for least in times.values())] for name in names]
    none = [""] * (len(times) - 1)
    rows += [[name, f"failed: {reason}", *none] for name, reason in failures.items()]
    return markdown(["µs an image, batch of", *times], rows)


def parities(parity: Mapping[str, Parity], times: Times, served: str) -> str:
    """How the answers of each variant differ from those that are served, and the verdict."""
    rows = []
    for name, each in parity.items():
        ratios = {kind: least[name].cpu / least[served].cpu for kind, least in times.items()}
        counts = map(str, (each.labels, each.accepted, each.flagged))
        changes = (f"{change:.1e}" for change in (each.probability, each.company))
        outcome = "served" if name == served else verdict(each, ratios)
        rows.append([name, *counts, *changes, outcome])
    header = [
        "variant",
        "labels",
        "acceptances",
        "flags",
        "largest Δ mean p",
        "alone or in a batch",
    ]
    return markdown([*header, "verdict"], rows)


def threads(times: Mapping[int, Mapping[int, Mapping[int, Least]]]) -> str:
    """Wall and CPU time an image, by batch, by members and by threads."""
    rows = [
        [str(batch), str(asked), *(f"{_micro(a.wall)} / {_micro(a.cpu)}" for a in least.values())]
        for batch, by_members in times.items()
        for asked, least in by_members.items()
    ]
    counts = next(least for by_members in times.values() for least in by_members.values())
    names = [f"{count} thread{'s' if count > 1 else ''}" for count in counts]
    return markdown(["batch", "members", *names], rows)


def members(times: Mapping[int, Least]) -> str:
    """µs an image, and a member and image, by members."""
    rows = [[str(size), _micro(a.cpu), _micro(a.cpu / size)] for size, a in times.items()]
    return markdown(["members", "µs an image", "µs a member and image"], rows)


def pixels(times: Mapping[tuple[int, int], Least]) -> str:
    """µs an image, and beside the smallest images, by pixels on a side and by D."""
    smallest = min(times)
    rows = [
        [
            f"{side} × {side}",
            f"{weights:,}",
            f"{(side / smallest[0]) ** 2:.1f}",
            f"{least.cpu / times[smallest].cpu:.1f}",
            _micro(least.cpu),
        ]
        for (side, weights), least in times.items()
    ]
    return markdown(["image", "weights of a member", "× pixels", "× time", "µs an image"], rows)


def _micro(seconds: float) -> str:
    micro = 1e6 * seconds
    return f"{micro:.0f}" if micro >= 100 else f"{micro:.1f}"
