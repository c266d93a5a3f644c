"""Accuracy against trainable parameters, for ``tools/results_table.py``: what the parameters of each method buy.

A method is on the Pareto front if none with as few parameters, or fewer, is as accurate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .cells import Cell, format_shots
from .study import SHOTS, ZERO_SHOT_ROWS, Table

MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class Point:
    name: str
    parameters: int
    accuracy: float
    spread: float  # half of its 95% interval


def collect_points(table: Table) -> tuple[int, list[Point]]:
    """Return the number of shots that most methods have results with, the largest of them, and the points there.

    Methods whose records do not tell their parameters have none; zero-shot ones have one, unless nothing was trained.
    """

    def known(cells: dict[int, Cell], shots: int) -> bool:
        return shots in cells and bool(cells[shots].accuracies and cells[shots].parameters)

    shots = max(SHOTS[1:], key=lambda s: (sum(known(cells, s) for cells in table.values()), s))
    if not any(known(cells, shots) for cells in table.values()):
        return shots, []
    chosen = {row: cells[s] for row, cells in table.items() if known(cells, s := 0 if row in ZERO_SHOT_ROWS else shots)}
    return shots, [Point(row, max(cell.parameters), cell.mean, cell.spread) for row, cell in chosen.items()]


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats, from few parameters to many."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.parameters, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def plot(shots: int, points: Sequence[Point], title: str, file) -> None:
    """Write the picture as a PNG. The axis of parameters is logarithmic, with a place for 0."""
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
