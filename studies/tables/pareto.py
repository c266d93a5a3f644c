"""The plot of accuracy against trainable parameters, for ``tools/results_table.py``.

A method is on the Pareto front if no method with as few or fewer parameters is as accurate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .cells import Cell
from .study import ZERO_SHOTS, Table, format_column, wrap_label

MARKERS = "osD^vP*X"  # matplotlib's filled markers, which stay distinct where points overlap


@dataclass(frozen=True)
class Point:
    """A method in the plot: trainable parameters, mean accuracy in percent, half its 95% interval."""

    name: str
    parameters: int
    accuracy: float
    spread: float


def collect_points(table: Table) -> tuple[int, list[Point]]:
    """Return the column (shots) in which the most methods have results, and a point for each of these methods.

    The larger number of shots wins a tie. If a trained method has a point, zero-shot methods have one, too. A method
    whose records lack the number of trainable parameters has no point.
    """

    def has_point(cells: dict[int, Cell], column: int) -> bool:
        """Whether a row's cell in ``column`` exists and has both accuracies and numbers of parameters."""
        return column in cells and bool(cells[column].accuracies and cells[column].parameters)

    counts = Counter(column for cells in table.values() for column in cells if has_point(cells, column))
    del counts[ZERO_SHOTS]
    if not counts:
        return ZERO_SHOTS, []
    shots = max(counts, key=lambda column: (counts[column], column))
    chosen = {row: cells[c] for row, cells in table.items() for c in (ZERO_SHOTS, shots) if has_point(cells, c)}
    return shots, [Point(row, max(cell.parameters), cell.mean, cell.spread) for row, cell in chosen.items()]


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points on the Pareto front, by ascending parameters; of equal points, one."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.parameters, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def plot_pareto(shots: int, points: Sequence[Point], title: str, file) -> None:
    """Write a plot of accuracy against parameters, with the Pareto front, to a binary file as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), dpi=150, layout="constrained")
    front = pareto_front(points)
    axes.plot([p.parameters for p in front], [p.accuracy for p in front], color="gray", label="Pareto front", zorder=1)
    for number, p in enumerate(points):
        marker, color, label = MARKERS[number % len(MARKERS)], f"C{number % 10}", wrap_label(p.name)
        axes.errorbar(p.parameters, p.accuracy, p.spread, fmt=marker, color=color, capsize=3, label=label)
    axes.set_xscale("symlog", linthresh=max(1, min((p.parameters for p in points if p.parameters), default=1)))
    axes.set(xlabel="trainable parameters", ylabel="test accuracy (%)")
    axes.set_title(f"{title}, {format_column(shots)}", parse_math=False)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(file, format="png")
    plt.close(figure)
