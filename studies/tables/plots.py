"""The plots of a few-shot study as PNGs: accuracy against shots, and against trainable parameters."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .cells import Cell
from .pareto import collect_points, pareto_front
from .study import ALL_IMAGES, COOP_ROWS, GROUPS, ZERO_SHOTS, Table, format_column, get_group

LEGEND_WIDTH, LEGEND_ROWS = 40, 30  # characters of a line, lines of a column: more would leave no space for the plot
TITLE_WIDTH = 100  # characters of a line: what there is space for, left of the legend
MAX_CURVES = 8  # trained methods that one plot can show; of more, each group has a plot
MAX_GAP = 0.14  # between methods side by side, where 1 is the next number of shots: more would look like another number
PARAMETER_GAPS = 50  # gaps between methods over the width of the plot of parameters: one is as wide as a marker
MARKERS = "osD^vP*X"  # matplotlib's filled markers, which stay distinct where points overlap
FILLINGS: tuple[dict, ...] = ({}, {"markerfacecolor": "white"}, {"fillstyle": "bottom", "markerfacecoloralt": "white"})
GRAY = "0.95"  # the background of a number of shots, or of 0 parameters: it stays light in print


def describe_runs(cells: Iterable[Cell]) -> str:
    """Return a line for titles: ``backbone RN50 · ImageNet · 10 classes · 500 test images · seeds 1, 2, 3``."""
    runs = [cell.runs for cell in cells]
    records = [run.record for group in runs for run in group]
    seeds = {", ".join(str(run.seed) for run in group if run.is_trained) for group in runs} - {""}
    facts = {
        "backbones": {f"backbone {name}" for r in records if (name := r.get("weights", {}).get("backbone"))},
        "data sets": {str(r["dataset"]) for r in records if r.get("dataset")},
        "sets of classes": {f"{len(r['classnames']):,} classes" for r in records if r.get("classnames")},
        "sets of test images": {f"{r['total']:,} test images" for r in records if isinstance(r.get("total"), int)},
        "sets of seeds": {f"seed{'s' * (',' in text)} {text}" for text in seeds},
    }
    return " · ".join(f"several {name}" if len(texts) > 1 else min(texts) for name, texts in facts.items() if texts)


def choose_styles(groups: Mapping[str, str]) -> dict[str, dict]:
    """Return the marker, its filling and the colour of each row in plots. ``groups`` are by row.

    No two of 24 rows share both marker and filling, so that they are told apart without colours, too. A group has
    shades of one colour.
    """
    from matplotlib import colormaps

    styles: dict[str, dict] = {}
    for number, (row, group) in enumerate(groups.items()):
        palette = GROUPS.get(group, "Greys")
        members = [name for name, other in groups.items() if GROUPS.get(other, "Greys") == palette]
        shade = 0.4 + 0.6 * (members.index(row) + 1) / len(members)
        marker, filling = MARKERS[number % len(MARKERS)], FILLINGS[number // len(MARKERS) % len(FILLINGS)]
        styles[row] = {"marker": marker, "color": colormaps[palette](shade), **filling}
    return styles


def plot_study(table: Table, title: str, file) -> None:
    """Write a plot of accuracy against shots, one curve per method, to a binary file as a PNG.

    Methods stand side by side at each number of shots. Those that train nothing have a line through the plot. With more
    than MAX_CURVES others, each group has a plot.
    """
    rows = {row: {c: cell for c, cell in cells.items() if cell.accuracies} for row, cells in table.items()}
    columns = sorted({column for cells in rows.values() for column in cells})
    styles = choose_styles(groups := {row: get_group(cells) for row, cells in rows.items() if cells})
    panels = {row: groups[row] for row in groups if ZERO_SHOTS not in rows[row]}  # the title of a trained row's plot
    panels = panels if len(panels) > MAX_CURVES else dict.fromkeys(panels, "")
    labels = {row: f"{row}, {n_ctx} tokens" for (n_ctx, _), row in COOP_ROWS.items()}
    figure = _build_figure([*dict.fromkeys(panels.values())] or [""])
    for axes in figure.axes:
        for place in range(0, len(columns), 2):
            axes.axvspan(place - 0.5, place + 0.5, color=GRAY, zorder=0)
        for row, group in groups.items():
            beside = [other for other in groups if panels.get(other) == panels.get(row)]
            offset = (beside.index(row) - (len(beside) - 1) / 2) * min(MAX_GAP, 0.8 / len(beside))
            x, cells = [columns.index(column) + offset for column in rows[row]], [*rows[row].values()]
            line = {"color": styles[row]["color"], "linewidth": 1, "zorder": 1}
            if row not in panels:
                label = f"{row} ({cells[0].mean:.2f}%)" if axes is figure.axes[0] else ""
                axes.axhline(cells[0].mean, linestyle="--", **line)
                _draw_points(axes, x, cells, group, label, linestyle="--", **styles[row])
            elif panels[row] == axes.get_title("left"):
                joined = len(x) - (ALL_IMAGES in rows[row])  # "all" is no number of shots, so no line goes there
                axes.plot(x[:joined], [cell.mean for cell in cells[:joined]], **line)
                _draw_points(axes, x, cells, group, labels.get(row, row), linestyle="", **styles[row])
    ticks = {place: "all" if column == ALL_IMAGES else str(column) for place, column in enumerate(columns)}
    cells = [cell for row in rows.values() for cell in row.values()]
    _write(figure, cells, ticks, (-0.5, len(columns) - 0.5), title, "training images per class (shots)", file)


def plot_pareto(table: Table, title: str, file) -> None:
    """Write a plot of accuracy against parameters, with the Pareto front as a staircase, to a binary file as a PNG.

    0 has a place of its own, left of a logarithmic axis that begins at the fewest parameters of the other methods.
    Methods with equal or close numbers of parameters stand side by side.
    """
    from matplotlib.ticker import LogLocator
    from scipy.optimize import isotonic_regression

    shots, points = collect_points(table)
    counts = np.array(sorted(p.parameters for p in points))
    zeros, low, high = int((counts == 0).sum()), min(counts[counts > 0], default=1), max(counts.max(), 1)
    gap = max(math.log10(high / low), 1) / PARAMETER_GAPS
    zero, gaps = math.log10(low) - (zeros + 4) * gap, gap * np.arange(len(points))
    exact = np.where(counts, np.log10(np.maximum(counts, 1)), zero)
    places = isotonic_regression(exact - gaps).x + gaps  # the nearest ones with a gap between any two
    x = dict(zip((p.name for p in sorted(points, key=lambda p: p.parameters)), places, strict=True))
    numbers = LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)).tick_values(low, high)
    ticks = {math.log10(n): f"{n:,.0f}" for n in [n for n in numbers if low <= n <= high] or [low]}
    limits = places[0] - 2 * gap, places[-1] + 2 * gap
    figure = _build_figure([""])
    axes, front = figure.axes[0], pareto_front(points)
    if zeros:
        ticks[zero] = "0"
    if 0 < zeros < len(points):
        end = places[zeros - 1 : zeros + 1].mean()
        axes.axvspan(limits[0], end, color=GRAY, zorder=0)
        axes.text(end, 0, "//", transform=axes.get_xaxis_transform(), ha="center", va="center")
    steps = [(x[p.name], p.accuracy) for p in front] + [(places[-1], front[-1].accuracy)]
    axes.step(*zip(*steps, strict=True), where="post", color="gray", zorder=1, label="Pareto front")
    cells = [table[p.name].get(shots) or table[p.name][ZERO_SHOTS] for p in points]
    styles = choose_styles({p.name: p.group for p in points})
    for p, cell in zip(points, cells, strict=True):
        _draw_points(axes, [x[p.name]], [cell], p.group, f"{p.name}, {p.parameters:,}", linestyle="", **styles[p.name])
    title += ", all images" if shots == ALL_IMAGES else f", {format_column(shots)}"
    label = "trainable parameters (logarithmic; equal or close numbers side by side)"
    _write(figure, cells, ticks, limits, title, label, file)


def _build_figure(titles: Sequence[str]) -> Any:
    """Return a figure whose axes have these titles, one below another, and share their scales."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (10, max(5.5, 1 + 2.5 * len(titles)))
    figure, _ = plt.subplots(len(titles), sharex=True, sharey=True, figsize=size, layout="constrained")
    for axes, title in zip(figure.axes, titles, strict=True):
        axes.set_title(title, loc="left", fontsize="medium", weight="bold")
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y", alpha=0.3)
    return figure


def _draw_points(axes, x: Sequence[float], cells: Sequence[Cell], group: str, label: str, **style: Any) -> None:
    """Draw the means of ``cells`` and their intervals; ``label`` is for the legend, below a header for ``group``."""
    if label and group not in axes.get_legend_handles_labels()[1]:
        axes.errorbar([], [], linestyle="", label=group)
    spreads = [cell.spread or math.nan for cell in cells] if any(cell.spread for cell in cells) else None
    label = textwrap.fill(label, LEGEND_WIDTH)
    axes.errorbar(x, [cell.mean for cell in cells], spreads, capsize=2, label=label, **style)


def _write(figure, cells: Sequence[Cell], ticks: dict, limits: tuple, title: str, xlabel: str, file) -> None:
    """Add the titles, the texts ``ticks`` of x axes, chance if it is near, and a legend outside; write the PNG."""
    from matplotlib import pyplot as plt

    bottom, top = np.clip(figure.axes[0].get_ylim(), -1, 101)  # intervals may be longer, but there is no such accuracy
    classes = {len(run.record.get("classnames", ())) for cell in cells for run in cell.runs} - {0}
    chance = 100 / min(classes) if len(classes) == 1 else math.nan
    for axes in figure.axes:
        if bottom <= chance <= top:
            name = f"chance ({chance:.2f}%)" if axes is figure.axes[0] else ""
            axes.axhline(chance, color="black", linestyle=":", linewidth=1, label=name)
        axes.set(xticks=[*ticks], xticklabels=[*ticks.values()], xlim=limits, ylim=(bottom, top))
    bars = " · bars: 95% intervals" * any(cell.spread for cell in cells)
    bars += " (cut at 0% and 100%)" * any(abs(cell.mean - 50) + cell.spread > 51 for cell in cells)
    texts = [textwrap.fill(text, TITLE_WIDTH) for text in (title, describe_runs(cells) + bars)]
    figure.suptitle("\n".join(texts), x=0.01, ha="left", fontsize="medium", parse_math=False)
    figure.supxlabel(xlabel, fontsize="medium")
    figure.supylabel("test accuracy (%)", fontsize="medium")
    heads = {cell.group or "other" for cell in cells}
    entries = [entry for axes in figure.axes for entry in zip(*axes.get_legend_handles_labels(), strict=True)]
    entries = [entry for entry in entries if len(heads) > 1 or entry[1] not in heads]
    columns = 1 + len(entries) // LEGEND_ROWS
    legend = figure.legend(*zip(*entries, strict=True), loc="outside right upper", fontsize="small", ncols=columns)
    for text in legend.get_texts():
        text.set(weight="bold" if text.get_text() in heads else "normal", parse_math=False)
    figure.savefig(file, format="png", dpi=140, pil_kwargs={"optimize": True})
    plt.close(figure)
