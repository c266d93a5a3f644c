"""The plot of accuracy against trainable parameters, for ``tools/results_table.py``.

A method is on the Pareto front if no method with as few or fewer parameters is as accurate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .cells import Cell, format_shots
from .study import SHOTS, ZERO_SHOT_ROWS, Table

MARKERS = "osD^vP*X"  # matplotlib's filled markers, which stay distinct where points overlap


@dataclass(frozen=True)
class Point:
    """A method in the plot: trainable parameters, mean accuracy in percent, half its 95% interval."""

    name: str
    parameters: int
    accuracy: float
    spread: float


def collect_points(table: Table) -> tuple[int, list[Point]]:
    """Return the number of shots at which the most methods have results, and a point for each of these methods.

    The larger number of shots wins a tie. If a trained method has a point, zero-shot methods have one, too. A method
    whose records lack the number of trainable parameters has no point.
    """

    def has_point(cells: dict[int, Cell], shots: int) -> bool:
        """Whether a row's cell for ``shots`` exists and has both accuracies and numbers of parameters."""
        return shots in cells and bool(cells[shots].accuracies and cells[shots].parameters)

    shots = max(SHOTS[1:], key=lambda s: (sum(has_point(cells, s) for cells in table.values()), s))
    if not any(has_point(cells, shots) for cells in table.values()):
        return shots, []
    columns = {row: 0 if row in ZERO_SHOT_ROWS else shots for row in table}
    chosen = {row: cells[columns[row]] for row, cells in table.items() if has_point(cells, columns[row])}
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
        marker = MARKERS[number % len(MARKERS)]
        axes.errorbar(p.parameters, p.accuracy, p.spread, fmt=marker, color=f"C{number % 10}", capsize=3, label=p.name)
    axes.set_xscale("symlog", linthresh=max(1, min((p.parameters for p in points if p.parameters), default=1)))
    axes.set(xlabel="trainable parameters", ylabel="test accuracy (%)")
    axes.set_title(f"{title}, {format_shots(shots)}", parse_math=False)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(file, format="png")
    plt.close(figure)
