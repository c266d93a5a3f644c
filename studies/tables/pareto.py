"""Accuracy against trainable parameters, for ``tools/results_table.py``: what the parameters of each method buy.

A method is on the Pareto front if none with as few parameters, or fewer, is as accurate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from studies.tables.cells import Cell, shots_text
from studies.tables.study import SHOTS, ZERO_SHOT, Table

DPI = 150
GAP = 10  # pixels between a point and a label beside it
ROUND = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]  # where a label may stand
FAR = range(1, 13)  # and how far away, in gaps; a line leads to it


@dataclass(frozen=True)
class Point:
    name: str
    parameters: int
    accuracy: float
    spread: float  # half of its 95% interval


def points_of(table: Table) -> tuple[int, list[Point]]:
    """The number of shots that most methods have results with, the largest of them, and the methods there whose records
    tell their parameters; zero-shot ones too. No methods if nothing was trained."""

    def known(cells: dict[int, Cell], shots: int) -> bool:
        return shots in cells and bool(cells[shots].accuracies and cells[shots].parameters)

    shots = max(SHOTS[1:], key=lambda s: (sum(known(cells, s) for cells in table.values()), s))
    if not any(known(cells, shots) for cells in table.values()):
        return shots, []
    chosen = {row: cells[s] for row, cells in table.items() if known(cells, s := 0 if row in ZERO_SHOT else shots)}
    return shots, [Point(row, max(cell.parameters), cell.mean, cell.spread) for row, cell in chosen.items()]


def front_of(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats, from few parameters to many."""
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

    figure, axes = plt.subplots(figsize=(8, 5.5), dpi=DPI, layout="constrained")
    front = front_of(points)
    for chosen, color in ((front, "tab:red"), ([p for p in points if p not in front], "tab:blue")):
        x, y = [p.parameters for p in chosen], [p.accuracy for p in chosen]
        axes.errorbar(x, y, yerr=[p.spread for p in chosen], fmt="o", color=color, capsize=3, elinewidth=0.8)
    (line,) = axes.plot(
        [p.parameters for p in front], [p.accuracy for p in front], color="tab:red", label="Pareto front", zorder=1
    )
    _scale(axes, [p.parameters for p in points])
    axes.set(xlabel="trainable parameters", ylabel="test accuracy (%)")
    axes.set_title(f"{title}, {shots_text(shots)}", parse_math=False)
    axes.margins(0.12, 0.08)
    axes.grid(alpha=0.3)
    axes.legend(handles=[line], loc="lower right")
    _label(figure, axes, points, front)
    figure.savefig(file, format="png", dpi=DPI)
    plt.close(figure)


def _scale(axes, counts: Sequence[int]) -> None:
    """Powers of ten, and 0 one step to the left of them."""
    least, most = min((c for c in counts if c), default=1), max(counts)
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(max(most, 1)))
    axes.set_xscale("symlog", linthresh=10**first, linscale=0.7)
    powers = [10**power for power in range(first, max(first, last) + 1)]
    axes.set_xticks([0, *powers] if 0 in counts else powers)
    axes.set_xticklabels([f"{tick:,}" for tick in axes.get_xticks().astype(int)])
    axes.minorticks_off()


def _label(figure, axes, points: Sequence[Point], front: Sequence[Point]) -> None:
    """Write each name beside its point, as near as it covers no other name, point or line."""
    figure.canvas.draw()  # lays the figure out
    inside, taken = axes.get_window_extent(), _taken(axes, points, front)
    for p in sorted(points, key=lambda p: -p.accuracy):
        places = []
        for far, side in product(FAR, range(len(ROUND))):
            text, box = _write(axes, p, far, side)
            text.remove()
            out = not (inside.contains(*box.min) and inside.contains(*box.max))
            places.append((out, box.count_overlaps(taken), far, side))
            if not any(places[-1][:2]):
                break
        taken.append(_write(axes, p, *min(places)[2:])[1])


def _write(axes, point: Point, far: int, side: int):
    """Write the name of a point; returns the text and its box in pixels."""
    from matplotlib.text import Text

    dx, dy = ROUND[side]
    text = axes.annotate(
        point.name,
        (point.parameters, point.accuracy),
        (dx * far * GAP, dy * far * GAP),
        textcoords="offset pixels",
        ha={1: "left", 0: "center", -1: "right"}[dx],
        va={1: "bottom", 0: "center", -1: "top"}[dy],
        fontsize=9,
        in_layout=False,
        arrowprops={"arrowstyle": "-", "color": "gray", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
    )
    text.update_positions(axes.figure.canvas.get_renderer())
    return text, Text.get_window_extent(text)  # an annotation's own box would hold the line to its point


def _taken(axes, points: Sequence[Point], front: Sequence[Point]) -> list:
    """The boxes, in pixels, of what a label must not cover: the legend, the points with their intervals, the front."""
    from matplotlib.transforms import Bbox

    def box(x0: float, y0: float, x1: float, y1: float, margin: float) -> Bbox:
        return Bbox.from_extents(x0 - margin, y0 - margin, x1 + margin, y1 + margin)

    to_pixels = axes.transData.transform
    taken = [axes.get_legend().get_window_extent()]
    for p in points:
        low, high = to_pixels([(p.parameters, p.accuracy - p.spread), (p.parameters, p.accuracy + p.spread)])
        taken.append(box(*low, *high, margin=7))
    for start, end in pairwise(to_pixels((p.parameters, p.accuracy)) for p in front):
        spots = (start + (end - start) * step / 100 for step in range(101))
        taken += [box(*spot, *spot, margin=1) for spot in spots]
    return taken
