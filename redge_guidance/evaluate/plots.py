"""What was measured, as pictures: the judge against time, and against likelihood."""

import io
from collections.abc import Sequence
from typing import Any

from redge_guidance.evaluate.report import Row, rows_of
from redge_guidance.evaluate.running import Cell

_MARKERS = "osD^"


def plot(cells: Sequence[Cell], kind: str = "png") -> bytes:
    """A picture, a row a task: gold against seconds a sample, and against nats a token, with 95 % intervals.

    Args:
        cells: at least one.
        kind: "png", "pdf", "svg" or what else matplotlib writes.

    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: no cells; a kind that matplotlib does not know.
    """
    cells = list(cells)
    if not cells:
        raise ValueError("`cells` must be at least one, as of `run`, got none.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError("`matplotlib` is not installed, which draws plots; `pip install matplotlib`.") from error
    rows = rows_of(cells)
    tasks = list(dict.fromkeys(row.task for row in rows))
    most = max(sum(row.task == task for row in rows) for task in tasks)
    figure = Figure(figsize=(13, max(3.4, 0.16 * most) * len(tasks)), layout="constrained")
    panels: Any = figure.subplots(len(tasks), 2, squeeze=False)
    for (left, right), task in zip(panels, tasks, strict=True):
        mine = [row for row in rows if row.task == task]
        _panel(left, mine, [row.seconds for row in mine], None)
        _panel(right, mine, [row.nats for row in mine], [row.nats_interval for row in mine])
        left.set(xscale="log", xlabel="seconds a sample", ylabel=f"{task}: gold")
        right.set(xlabel="nats a token")
        right.legend(*left.get_legend_handles_labels(), fontsize=6, loc="center left", bbox_to_anchor=(1.02, 0.5))
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=110)
    return content.getvalue()


def _panel(
    axes: Any, rows: Sequence[Row], across: Sequence[float], spread: Sequence[tuple[float, float]] | None
) -> None:
    for k, (row, x) in enumerate(zip(rows, across, strict=True)):
        if x != x:  # not known
            continue
        y, (low, high) = row.gold, row.gold_interval
        sideways = None if spread is None else [[max(0.0, x - spread[k][0])], [max(0.0, spread[k][1] - x)]]
        upright = [[max(0.0, y - low)], [max(0.0, high - y)]]
        look: Any = {"fmt": _MARKERS[k // 10 % len(_MARKERS)], "ms": 4, "lw": 0.8, "color": f"C{k % 10}"}
        axes.errorbar([x], [y], yerr=upright, xerr=sideways, label=row.method, **look)
    axes.grid(alpha=0.3)
