"""The plot of accuracy against trainable parameters, for ``tools/results_table.py``.

A method is on the Pareto front if no method with as few or fewer parameters is as accurate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .study import ZERO_SHOTS, Table, choose_styles, draw_legend, format_column, get_group


@dataclass(frozen=True)
class Point:
    """A method in the plot: trainable parameters, mean accuracy in percent, half its 95% interval, and its group."""

    name: str
    parameters: int
    accuracy: float
    spread: float
    group: str = "other"


def collect_points(table: Table) -> tuple[int, list[Point]]:
    """Return the column (shots) in which the most methods have results, and a point for each of these methods.

    Of several, one with intervals wins, then the most shots. If a trained method has a point, zero-shot methods have
    one, too. A method whose records lack the number of trainable parameters has no point.
    """
    complete = {
        row: {column: cell for column, cell in cells.items() if cell.accuracies and cell.parameters}
        for row, cells in table.items()
    }
    counts = Counter(column for cells in complete.values() for column in cells)
    del counts[ZERO_SHOTS]
    if not counts:
        return ZERO_SHOTS, []
    shots = max(counts, key=lambda c: (counts[c], any(c in r and r[c].has_interval for r in complete.values()), c))
    chosen = {row: cells[c] for row, cells in complete.items() for c in (ZERO_SHOTS, shots) if c in cells}
    points = (Point(n, max(c.parameters), c.mean, c.spread, get_group(table[n])) for n, c in chosen.items())
    return shots, [*points]


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points on the Pareto front, by ascending parameters; of equal points, one."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.parameters, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def plot_pareto(shots: int, points: Sequence[Point], title: str, file) -> None:
    """Write a plot of accuracy against parameters, with the Pareto front as a staircase, to a binary file as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), dpi=150, layout="constrained")
    front, most = pareto_front(points), max(p.parameters for p in points)
    steps = [(p.parameters, p.accuracy) for p in front] + [(most, front[-1].accuracy)]
    (line,) = axes.step(*zip(*steps, strict=True), where="post", color="gray", zorder=1)
    entries: list[tuple[str, str, Any]] = [("", "Pareto front", line)]
    styles = choose_styles({p.name: p.group for p in points})
    for p in points:
        bar = axes.errorbar(p.parameters, p.accuracy, p.spread, linestyle="none", capsize=3, **styles[p.name])
        entries.append((p.group, p.name, bar))
    axes.set_xscale("symlog", linthresh=max(1, min((p.parameters for p in points if p.parameters), default=1)))
    axes.set(xlabel="trainable parameters", ylabel="test accuracy (%)")
    axes.set_title(f"{title}, {format_column(shots)}", parse_math=False)
    axes.grid(alpha=0.3)
    draw_legend(figure, entries)
    figure.savefig(file, format="png")
    plt.close(figure)
