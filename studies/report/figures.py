"""The report's plots, as Plotly figures."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from studies.tables.cells import OTHER
from studies.tables.pareto import Point, pareto_front
from studies.tables.study import ALL_IMAGES, GROUPS, ZERO_SHOTS, get_group

from .analysis import BINS, Calibration, compute_class_accuracy, compute_confusion
from .collect import StudyData, read_curve

Text = Callable[..., str]  # a sentence of the page in its language, by key, with values
MAX_LINES = 8  # methods that are on at first: more curves cannot be followed
MAX_CLASSES = 40  # classes of a heat map: names of more would not be legible
MAX_LABELLED = 12  # classes of a heat map with numbers in its fields
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
DODGE = 0.56  # part of the distance of neighbouring shots over which methods are side by side
FAR_CHANCE = 1.0  # chance is off at first if it is further below the methods than this times their range
GREY = "#8a8f98"


@dataclass
class Plot:
    """A plot of which the reader chooses the data.

    Attributes:
        layout: Plotly's layout, of all choices.
        options: Plotly's traces and a note, by the names of the choice; () without a choice.
        note: what the reader should know of all choices.
    """

    layout: dict
    options: dict[tuple[str, ...], tuple[list[dict], str]] = field(default_factory=dict)
    note: str = ""

    def add(self, key: tuple[str, ...], traces: Sequence[Any], note: str = "") -> None:
        """Add the traces of a choice."""
        self.options[key] = [trace.to_plotly_json() for trace in traces], note


def escape(name: object) -> str:
    """Return a text that Plotly shows as it is: Plotly reads some HTML in texts."""
    return html.escape(str(name), quote=False)


def choose_styles(data: StudyData) -> dict[str, dict]:
    """Return the marker of each row: shades of its group's colour, which are legible on white and on black."""
    styles, rows = {}, data.study.table
    for row, cells in rows.items():
        palette = GROUPS.get(get_group(cells), "Greys")
        members = [name for name, other in rows.items() if GROUPS.get(get_group(other), "Greys") == palette]
        number = members.index(row)
        shade = 0.45 + 0.35 * number / max(len(members) - 1, 1)
        color = sample_colorscale(palette, [shade])[0]
        styles[row] = {"color": color, "symbol": SYMBOLS[number % len(SYMBOLS)], "size": 8}
    return styles


def choose_lines(data: StudyData) -> list[str]:
    """Return the trained rows that are on at first: all; of more than MAX_LINES, the best of each group, then others."""
    cells = {row: cell for row, cell in data.list_cells(data.column, False).items() if row_is_trained(data, row)}
    ranked = sorted(cells, key=lambda row: -cells[row].mean)
    if len(cells) <= MAX_LINES:
        return ranked
    groups = {row: get_group(data.study.table[row]) for row in ranked}
    first = [next(row for row in ranked if groups[row] == group) for group in dict.fromkeys(groups.values())]
    first += [row for row in ranked if row.startswith("CoOp (")]
    return [*dict.fromkeys(first + ranked)][:MAX_LINES]


def row_is_trained(data: StudyData, row: str) -> bool:
    """Return whether a row has a result at some number of shots."""
    return any(column != ZERO_SHOTS and cell.accuracies for column, cell in data.study.table[row].items())


def _place_columns(columns: Sequence[int]) -> dict[int, float]:
    """Return the place of each number of shots on a logarithmic axis; all images are one step after the most shots."""
    most = max((math.log2(c) for c in columns if c != ALL_IMAGES), default=-1)
    return {column: most + 1 if column == ALL_IMAGES else math.log2(column) for column in columns}


def plot_shots(data: StudyData, styles: dict[str, dict], text: Text) -> Plot:
    """Return accuracy against shots: a curve for each method, side by side; lines for zero-shot methods and chance."""
    places = _place_columns(data.columns)
    ends = [min(places.values()) - 0.4, max(places.values()) + 0.4] if places else [-0.4, 0.4]
    gaps = [b - a for a, b in zip(sorted(places.values()), sorted(places.values())[1:], strict=False)]
    shown = choose_lines(data)
    lines, values = [], []
    rows = [row for row in data.study.table if row_is_trained(data, row)]
    order = [row for row in rows if row in shown] + [row for row in rows if row not in shown]
    for row in data.study.table:
        style, cells = styles[row], data.study.table[row]
        group = {
            "legendgroup": get_group(cells),
            "legendgrouptitle": {"text": escape(text(f"group_{get_group(cells)}"))},
        }
        found = {c: cell for c, cell in cells.items() if cell.accuracies and c in places}
        if (zero := cells.get(ZERO_SHOTS)) and zero.accuracies:
            name = f"{escape(row)}{zero.marks}"
            dash = {"color": style["color"], "dash": "dash" if row == data.zero_shot else "dot"}
            hover = f"%{{fullData.name}}: {zero.mean:.2f}%<extra></extra>"
            line = go.Scatter(
                x=ends, y=[zero.mean] * 2, mode="lines", line=dash, name=name, hovertemplate=hover, **group
            )
            lines.append(line)
            values.append(zero.mean)
        if found:
            # Those that are on at first are beside each other; the others take the same places, for when they are on.
            place = (order.index(row) % len(shown) + 0.5) / len(shown) - 0.5 if shown else 0
            offset = place * DODGE * min(gaps, default=1)
            marks = "".join(sorted({mark for cell in found.values() for mark in cell.marks}))
            lines.append(
                go.Scatter(
                    x=[places[c] + offset for c in found],
                    y=[round(cell.mean, 4) for cell in found.values()],
                    error_y={"array": [round(cell.spread, 4) for cell in found.values()], "thickness": 1.2, "width": 3},
                    customdata=[f"{text('column', column=c)}: {cell}" for c, cell in found.items()],
                    mode="lines+markers",
                    line={"color": style["color"], "width": 1.6},
                    marker={
                        **style,
                        "symbol": [style["symbol"] + "-open" * (OTHER in c.marks) for c in found.values()],
                    },
                    name=f"{escape(row)}{marks}",
                    visible=True if row in shown else "legendonly",
                    hovertemplate="%{fullData.name}<br>%{customdata}<extra></extra>",
                    **group,
                )
            )
            values += [cell.mean for cell in found.values()] if row in shown else []
    lines += _draw_chance(data, ends, values, text)
    plot = Plot(
        {
            "xaxis": {
                "title": {"text": text("axis_shots")},
                "tickvals": [*places.values()],
                "ticktext": [text("all") if c == ALL_IMAGES else str(c) for c in places],
                "range": ends,
                "showgrid": False,
            },
            "yaxis": {"title": {"text": text("axis_accuracy")}},
            "legend": {"groupclick": "toggleitem"},
        }
    )
    plot.add((), lines)
    if len(rows) > len(shown):
        plot.note = text("lines_shown", methods=", ".join(shown), hidden=len(rows) - len(shown))
    return plot


def _draw_chance(data: StudyData, ends: Sequence[float], values: Sequence[float], text: Text) -> list[go.Scatter]:
    """Return the line of chance, off at first where it would leave the methods a narrow part of the plot."""
    if not data.classes:
        return []
    chance = 100 / len(data.classes)
    is_far = min(values, default=0) - chance > FAR_CHANCE * (max(values, default=0) - min(values, default=0))
    return [
        go.Scatter(
            x=[*ends],
            y=[chance] * 2,
            mode="lines",
            line={"color": GREY, "dash": "dashdot"},
            name=text("chance", percent=f"{chance:.2f}"),
            visible="legendonly" if is_far else True,
            hovertemplate="%{fullData.name}<extra></extra>",
        )
    ]


def plot_parameters(data: StudyData, styles: dict[str, dict], text: Text) -> Plot:
    """Return accuracy against trainable parameters at each number of shots, with the front as a staircase."""
    plot, table = Plot({"yaxis": {"title": {"text": text("axis_accuracy")}}}), data.study.table
    columns = data.columns or [ZERO_SHOTS]
    everywhere = [
        max(cell.parameters) for c in columns for cell in data.list_cells(c, False).values() if cell.parameters
    ]
    positive = [math.log10(count) for count in everywhere if count] or [0]
    low, high = math.floor(min(positive)), math.ceil(max(positive))
    zero = low - 0.8  # a place of its own: a logarithmic axis has none
    for column in sorted(columns, key=lambda c: c != data.column):  # the first choice is the column of the answer
        cells = {row: cell for row, cell in data.list_cells(column, False).items() if cell.parameters}
        points = [Point(r, max(c.parameters), c.mean, c.spread, get_group(table[r])) for r, c in cells.items()]
        front = pareto_front([p for p in points if OTHER not in cells[p.name].marks])
        steps = [(math.log10(p.parameters) if p.parameters else zero, p.accuracy) for p in front]
        steps += [(max(positive), front[-1].accuracy)] if front else []
        hovers = [escape(p.name) for p in front] + [""] * bool(front)
        line = {"shape": "hv", "color": GREY, "dash": "dot"}
        x, y = ([step[i] for step in steps] for i in (0, 1))
        traces = [go.Scatter(x=x, y=y, mode="lines", line=line, name=text("front"), text=hovers, hoverinfo="text+y")]
        for point in points:
            same = [p.name for p in points if p.parameters == point.parameters]
            place = math.log10(point.parameters) if point.parameters else zero
            place += 0.05 * (same.index(point.name) - (len(same) - 1) / 2)  # side by side
            cell, style = cells[point.name], styles[point.name]
            traces.append(
                go.Scatter(
                    x=[place],
                    y=[round(cell.mean, 4)],
                    error_y={"array": [round(cell.spread, 4)], "thickness": 1.2, "width": 3},
                    mode="markers",
                    marker={**style, "size": 10, "symbol": style["symbol"] + "-open" * (OTHER in cell.marks)},
                    name=f"{escape(point.name)}{cell.marks}",
                    hovertemplate=f"%{{fullData.name}}<br>{point.parameters:,}<br>{cell}<extra></extra>",
                )
            )
        plot.add((text("column", column=column),), traces)
    powers = range(low, high + 1)
    plot.layout["xaxis"] = {
        "title": {"text": text("axis_parameters")},
        "tickvals": [zero, *powers],
        "ticktext": ["0", *(f"{10**power:,}" for power in powers)],
        "range": [zero - 0.4, max(positive) + 0.4],
    }
    edge = {"color": GREY, "width": 1}  # where the axis is broken between 0 and the logarithmic part
    plot.layout["shapes"] = [
        {"type": "line", "x0": low - 0.3, "x1": low - 0.3, "yref": "paper", "y0": 0, "y1": 1, "line": edge}
    ]
    return plot


def choose_classes(accuracies: np.ndarray) -> list[int]:
    """Return the classes of a heat map: all; of more than MAX_CLASSES, those with the lowest mean accuracy.

    ``accuracies`` is (rows, classes), in percent.
    """
    means = np.nan_to_num(np.nanmean(accuracies, axis=0), nan=np.inf)
    return sorted(np.argsort(means, kind="stable")[:MAX_CLASSES].tolist())


def plot_classes(data: StudyData, text: Text) -> Plot:
    """Return the accuracy of each class over methods, at each number of shots."""
    plot = Plot({"yaxis": {"autorange": "reversed", "ticklabelstandoff": 6}, "xaxis": {"tickangle": -40}})
    for column in sorted(data.columns or [ZERO_SHOTS], key=lambda c: c != data.column):
        runs = {row: [*data.read_predictions(row, column).values()] for row in data.list_cells(column)}
        rates = {row: compute_class_accuracy(each, len(data.classes)) for row, each in runs.items() if each}
        if rates:
            values = np.stack([*rates.values()])
            classes = choose_classes(values)
            names = [data.classes[c] for c in classes]
            plot.add((text("column", column=column),), [_draw_heat(values[:, classes], names, [*rates], text)])
            plot.note = text("classes_chosen", number=len(classes)) if len(classes) < len(data.classes) else ""
            plot.layout["height"] = 170 + 26 * len(rates)
    return plot


def _draw_heat(values: np.ndarray, columns: Sequence[str], rows: Sequence[str], text: Text, notes=None) -> go.Heatmap:
    """Return a heat map of percentages (rows, columns); ``notes`` are texts of the fields, by default the values."""
    texts = [[f"{value:.0f}" for value in row] for row in values]
    return go.Heatmap(
        z=[[None if np.isnan(value) else round(float(value), 2) for value in row] for row in values],
        x=[escape(name) for name in columns],
        y=[escape(name) for name in rows],
        text=texts if notes is None else notes,
        texttemplate="%{text}" if len(columns) <= MAX_LABELLED else "",
        hovertemplate=text("heat_hover" if notes is None else "confusion_hover") + "<extra></extra>",
        colorscale="Blues",
        zmin=0,
        zmax=100,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "%"}, "thickness": 12},
    )


def plot_confusion(data: StudyData, predictions: Sequence[tuple[str, int, list]], text: Text) -> Plot:
    """Return the confusion matrix of each method and number of shots, with the most frequent confusions as its note."""
    axes = {"xaxis": {"title": {"text": text("axis_predicted")}, "tickangle": -40}, "height": 560}
    plot = Plot({**axes, "yaxis": {"title": {"text": text("axis_true")}, "autorange": "reversed"}})
    for row, column, runs in predictions:
        counts = compute_confusion(runs, len(data.classes))
        totals = counts.sum(axis=1, keepdims=True)
        shares = np.where(totals, 100 * counts / np.maximum(totals, 1), np.nan)
        classes = choose_classes(shares.diagonal()[None])
        names = [data.classes[c] for c in classes]
        part = np.ix_(classes, classes)
        heat = _draw_heat(shares[part], names, names, text, counts[part].tolist())
        wrong = counts * ~np.eye(len(counts), dtype=bool)
        most = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:5]]
        pairs = [
            text("confused", true=data.classes[t], predicted=data.classes[p], count=wrong[t, p], total=totals[t, 0])
            for t, p in most
            if wrong[t, p]
        ]
        note = text("most_confused", pairs="; ".join(pairs), runs=len(runs)) if pairs else text("no_mistake")
        plot.add((row, text("column", column=column)), [heat], note)
        plot.note = text("classes_chosen", number=len(classes)) if len(classes) < len(data.classes) else ""
    return plot


def list_predictions(data: StudyData) -> list[tuple[str, int, list]]:
    """Return (row, shots, predictions of the seeds) for each cell that has them; first the best method's."""
    best = data.best[data.column].method
    rows = sorted(data.study.table, key=lambda row: row != best)
    columns = sorted(data.columns or [ZERO_SHOTS], key=lambda c: c != data.column)
    cells = [(row, c) for row in rows for c in columns if c in data.study.table[row]]
    cells += [(row, ZERO_SHOTS) for row in rows if ZERO_SHOTS in data.study.table[row] and data.columns]
    found = ((row, c, [*data.read_predictions(row, c).values()]) for row, c in cells)
    return [item for item in found if item[2]]


def plot_reliability(calibrations: dict[tuple[str, int], Calibration], text: Text) -> Plot:
    """Return the reliability diagram of each method and number of shots, with its calibration error as the note."""
    percent = {"range": [0, 101], "ticksuffix": "%"}
    plot = Plot(
        {
            "xaxis": {"title": {"text": text("axis_confidence")}, **percent},
            "yaxis": {"title": {"text": text("axis_accuracy")}, **percent},
            "bargap": 0,
        }
    )
    ideal = go.Scatter(x=[0, 100], y=[0, 100], mode="lines", line={"color": GREY, "dash": "dash"}, name=text("ideal"))
    centres = [100 * (number + 0.5) / BINS for number in range(BINS)]
    for (row, column), calibration in calibrations.items():
        bars = go.Bar(
            x=centres,
            y=[None if np.isnan(value) else round(float(value), 2) for value in calibration.accuracy],
            width=100 / BINS,
            customdata=[[int(n), f"{c:.1f}"] for n, c in zip(calibration.counts, calibration.confidence, strict=True)],
            hovertemplate=text("bin_hover") + "<extra></extra>",
            marker={"color": "#4c8bd0", "line": {"color": "#2b5f99", "width": 1}},
            name=text("accuracy_in_bin"),
        )
        note = text("calibration_note", error=format_errors(calibration), images=f"{calibration.counts.sum():,}")
        plot.add((row, text("column", column=column)), [bars, ideal], note)
    return plot


def format_errors(calibration: Calibration) -> str:
    """Return the calibration error in points, the mean over seeds."""
    return f"{np.mean(calibration.errors):.2f}"


def plot_curves(data: StudyData, text: Text) -> Plot:
    """Return the loss and the learning rate over the epochs of each method and number of shots, by seed."""
    plot = Plot(
        {
            "xaxis": {"title": {"text": text("axis_epoch")}, "anchor": "y2"},
            "yaxis": {"title": {"text": text("axis_loss")}, "domain": [0.42, 1], "rangemode": "tozero"},
            "yaxis2": {"title": {"text": text("axis_rate")}, "domain": [0, 0.3], "exponentformat": "power"},
        }
    )
    best = data.best[data.column].method
    cells = [(row, column) for row in data.study.table for column in data.columns if column in data.study.table[row]]
    for row, column in sorted(cells, key=lambda item: (item[0] != best, item[1] != data.column)):
        traces = []
        curves = {run.seed: read_curve(run) for run in data.study.table[row][column].runs}
        for seed, curve in curves.items():
            if curve is None:
                continue
            line = {"mode": "lines", "x": curve.epochs, "name": text("seed", seed=seed), "legendgroup": f"seed{seed}"}
            traces.append(go.Scatter(y=[float(f"{loss:.4g}") for loss in curve.losses], **line))
            traces.append(go.Scatter(y=curve.rates, yaxis="y2", showlegend=False, **line))
        if traces:
            plot.add((row, text("column", column=column)), traces)
    return plot
