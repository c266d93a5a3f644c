"""Accuracy against trainable parameters, for the plots of ``plots.py``.

A method is on the Pareto front if no method with as few or fewer parameters is as accurate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .study import ZERO_SHOTS, Table, get_group


@dataclass(frozen=True)
class Point:
    """A method in the plot: trainable parameters, mean accuracy in percent, and its group."""

    name: str
    parameters: int
    accuracy: float
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
    points = (Point(n, max(c.parameters), c.mean, get_group(table[n])) for n, c in chosen.items())
    return shots, [*points]


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points on the Pareto front, by ascending parameters; of equal points, one."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.parameters, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front
