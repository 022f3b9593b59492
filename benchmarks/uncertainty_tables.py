"""The report of `benchmarks.uncertainty` as Markdown: mean over seeds ± standard deviation."""

from __future__ import annotations

from typing import Any

import numpy as np

COLUMNS = (("auroc", "AUROC", 1, 4), ("fpr95", "FPR95", 100, 2), ("fpr99", "FPR99", 100, 2))


def tables(report: dict[str, Any]) -> str:
    """One table a foreign set, and one of false alarms."""
    rows: dict[str, list[dict[str, Any]]] = report["rows"]
    sets = [name for name in next(iter(rows.values()))[0] if name != "test"]
    lines = [
        f"# {report['recipe']['name']}: unfamiliar images, seeds {', '.join(report['seeds'])}",
        "",
        f"{report['machine']}. FPR95, FPR99: share of the set, in %, that is accepted when 95 %, "
        "99 % of the test images are. Last column: accepted, in %, at a false-alarm rate of 0.1 %, "
        "with thresholds from 20 random halves of the calibration images. ± over seeds.",
        "",
    ]
    for name in sets:
        lines += [
            f"## {name}",
            "",
            "| score | AUROC | FPR95 | FPR99 | accepted at 0.1 % |",
            "|---|---|---|---|---|",
        ]
        for row, seeds in rows.items():
            cells = [
                _cell([seed[name][key] for seed in seeds], scale, decimals)
                for key, _, scale, decimals in COLUMNS
            ]
            leak = _cell([seed[name]["leak"] for seed in seeds], 100, 2)
            lines.append(f"| {row} | {' | '.join(cells)} | {leak} |")
        lines.append("")
    lines += ["## False alarms", "", "| score | test images flagged at 1 % | ± calibration |"]
    lines.append("|---|---|---|")
    for row, seeds in rows.items():
        flagged = _cell([seed["test"]["flagged"] for seed in seeds], 100, 2)
        spread = 100 * np.mean([seed["test"]["spread"] for seed in seeds])
        lines.append(f"| {row} | {flagged} | {spread:.2f} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float], scale: float, decimals: int) -> str:
    scaled = scale * np.array(values)
    spread = f" ± {scaled.std(ddof=1):.{decimals}f}" if len(scaled) > 1 else ""
    return f"{scaled.mean():.{decimals}f}{spread}"
