"""The report's plots, as Plotly's traces and layouts."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import yaml
from plotly.colors import sample_colorscale

from studies.tables.cells import OTHER, Cell
from studies.tables.pareto import Point, pareto_front
from studies.tables.study import ALL_IMAGES, COOP_ROWS, GROUPS, ZERO_SHOTS, get_group

from .analysis import BINS, compute_calibration, compute_class_accuracies, count_pairs
from .collect import StudyData, read_curve

Text = Callable[..., str]  # a sentence of the page in its language, by key, with values
LAYOUTS = Path(__file__).with_name("layouts.yaml")
MAX_LINES, FIRST_LINES = 8, 6  # of more methods than the first, only so many are on at first: more are a tangle
MAX_CLASSES = 40  # classes of a heat map: names of more would not be legible
MAX_LABELLED = 12  # classes of a heat map with numbers in its fields
MAX_CONFUSIONS = 5  # pairs in the sentence on the most frequent confusions
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
DODGE = 0.56  # part of the distance of neighbouring shots over which methods are side by side
GREY = "#8a8f98"  # legible on white and on black
HEAT: dict[str, Any] = {"colorscale": [[0, "#fff"], [1, "#5b9fd6"]]}
HEAT |= {"textfont": {"color": "#1b1f24"}}  # dark: legible on each of these colours
HEAT |= {"zmin": 0, "zmax": 100, "xgap": 1, "ygap": 1, "colorbar": {"title": {"text": "%"}, "thickness": 12}}


@dataclass
class Plot:
    """A plot for the page's script: Plotly's layout, and of each choice its names (``key``), traces and a note.

    Titles of axes are keys of ``texts.yaml``.
    """

    layout: dict[str, Any]
    options: list[dict[str, Any]] = field(default_factory=list)

    def add(self, traces: Sequence[Any], *key: str, note: str = "") -> None:
        """Add a choice."""
        self.options.append({"key": key, "data": [trace.to_plotly_json() for trace in traces], "note": note})


def escape(name: object) -> str:
    """Return a text that Plotly shows as it is: Plotly reads some HTML in texts."""
    return html.escape(str(name), quote=False)


def choose_styles(data: StudyData) -> dict[str, dict]:
    """Return the marker of each row: shades of its group's colour, which are legible on white and on black."""
    palettes = {row: GROUPS.get(get_group(cells), "Greys") for row, cells in data.table.items()}
    styles = {}
    for row, palette in palettes.items():
        members = [name for name in palettes if palettes[name] == palette]
        number = members.index(row)
        color = sample_colorscale(palette, [0.45 + 0.35 * number / max(len(members) - 1, 1)])[0]
        styles[row] = {"color": color, "symbol": SYMBOLS[number % len(SYMBOLS)], "size": 8}
    return styles


def choose_lines(data: StudyData) -> list[str]:
    """Return the trained rows that are on at first: of many, the best of each group and CoOp's, then the next best."""
    cells = {row: cell for row, cell in data.get_cells(data.column).items() if data.table[row].keys() - {ZERO_SHOTS}}
    ranked = sorted(cells, key=lambda row: -cells[row].mean)
    groups: dict[str, str] = {}
    for row in ranked:
        groups.setdefault(get_group(data.table[row]), row)
    first = [*groups.values(), *(row for row in COOP_ROWS.values() if row in ranked)]
    return ranked if len(ranked) <= MAX_LINES else [*dict.fromkeys(first + ranked)][:FIRST_LINES]


def _draw_cells(row: str, cells: Sequence[Cell], x: Sequence[float], style: dict, hovers: Sequence[str], **more: Any):
    """Return the trace of a row's cells at the places ``x``; cells with the mark OTHER are hollow."""
    symbols = [style["symbol"] + "-open" * (OTHER in cell.marks) for cell in cells]
    marks = "".join(sorted({mark for cell in cells for mark in cell.marks}))
    error = {"array": [round(cell.spread, 4) for cell in cells], "thickness": 1.2, "width": 3}
    means, marker = [round(cell.mean, 4) for cell in cells], {**style, "symbol": symbols}
    more |= {"line": {"color": style["color"], "width": 1.6}, "name": f"{escape(row)}{marks}", "customdata": [*hovers]}
    hover = "%{fullData.name}<br>%{customdata}<extra></extra>"
    return go.Scatter(x=[*x], y=means, error_y=error, marker=marker, hovertemplate=hover, **more)


def _draw_level(name: str, level: float, ends: Sequence[float], dash: str, color: str, **more: Any) -> go.Scatter:
    """Return a horizontal line."""
    line, hover = {"color": color, "dash": dash}, f"%{{fullData.name}}: {level:.2f}%<extra></extra>"
    return go.Scatter(x=[*ends], y=[level] * 2, mode="lines", line=line, name=name, hovertemplate=hover, **more)


def plot_shots(data: StudyData, plot: Plot, text: Text) -> None:
    """Draw accuracy against shots: a curve for each method, side by side; lines for zero-shot methods and chance."""
    most = max((math.log2(c) for c in data.columns if c != ALL_IMAGES), default=-1)
    places = {c: most + 1 if c == ALL_IMAGES else math.log2(c) for c in data.columns}  # "all": a step after the most
    if not places:
        return
    ends = [min(places.values()) - 0.4, max(places.values()) + 0.4]
    step = DODGE * min((b - a for a, b in pairwise(places.values())), default=1)
    styles, shown, lines, values = choose_styles(data), choose_lines(data), [], list[float]()
    hidden = [row for row, cells in data.table.items() if row not in shown and cells.keys() - {ZERO_SHOTS}]
    for row, cells in data.table.items():
        head = {"text": escape(text(f"group_{get_group(cells)}"))}
        group: dict[str, Any] = {"legendgroup": get_group(cells), "legendgrouptitle": head}
        if zero := cells.get(ZERO_SHOTS):
            dash, color = "dash" if row == data.zero_shot else "dot", styles[row]["color"]
            lines.append(_draw_level(f"{escape(row)}{zero.marks}", zero.mean, ends, dash, color, **group))
            values.append(zero.mean)
        if found := {c: cell for c, cell in cells.items() if c in places}:
            # Methods that are off at first take the same places as those that are on.
            number = (shown if row in shown else hidden).index(row) % len(shown)
            x = [places[c] + step * ((number + 0.5) / len(shown) - 0.5) for c in found]
            hovers = [f"{text('column', column=c)}: {cell}" for c, cell in found.items()]
            group |= {"visible": True if row in shown else "legendonly", "mode": "lines+markers"}
            lines.append(_draw_cells(row, [*found.values()], x, styles[row], hovers, **group))
            values += [cell.mean for cell in found.values()] if row in shown else []
    if data.classes:  # chance is off at first where it would take more than half of the plot from the methods
        chance = 100 / len(data.classes)
        visible = "legendonly" if min(values) - chance > max(values) - min(values) else True
        lines.append(_draw_level(text("chance"), chance, ends, "dashdot", GREY, visible=visible))
    ticks = [text("all") if c == ALL_IMAGES else str(c) for c in places]
    plot.layout["xaxis"] |= {"tickvals": [*places.values()], "ticktext": ticks, "range": ends}
    plot.add(lines, note=text("lines_shown", methods=", ".join(shown), hidden=len(hidden)) if hidden else "")


def plot_parameters(data: StudyData, plot: Plot, text: Text) -> None:
    """Draw accuracy against trainable parameters at each number of shots, with the front as a staircase."""
    columns, styles = sorted(data.columns or [ZERO_SHOTS], key=lambda c: c != data.column), choose_styles(data)
    tables = {c: {row: cell for row, cell in data.get_cells(c).items() if cell.parameters} for c in columns}
    logs = [math.log10(n) for cells in tables.values() for cell in cells.values() if (n := max(cell.parameters))] or [0]
    powers = range(math.floor(min(logs)), math.ceil(max(logs)) + 1)
    zero = powers[0] - 0.8  # a place of its own: a logarithmic axis has none
    for column, cells in tables.items():
        points = [Point(row, max(cell.parameters), cell.mean) for row, cell in cells.items()]
        places = {p.name: math.log10(p.parameters) if p.parameters else zero for p in points}
        front = pareto_front([p for p in points if OTHER not in cells[p.name].marks])
        steps = [(places[p.name], p.accuracy) for p in front] + [(max(logs), p.accuracy) for p in front[-1:]]
        x, y = ([step[i] for step in steps] for i in (0, 1))
        line = {"shape": "hv", "color": GREY, "dash": "dot"}
        traces = [go.Scatter(x=x, y=y, mode="lines", line=line, name=text("front"), hoverinfo="skip")]
        for p in points:
            same = [other.name for other in points if other.parameters == p.parameters]  # they are side by side
            x = [places[p.name] + 0.05 * (same.index(p.name) - (len(same) - 1) / 2)]
            hovers = [f"{p.parameters:,}: {cells[p.name]}"]
            traces.append(_draw_cells(p.name, [cells[p.name]], x, styles[p.name], hovers, mode="markers"))
        if points:
            plot.add(traces, text("column", column=column))
    ticks = {zero: "0"} | {power: f"{10**power:,}" for power in powers}
    ends = [zero - 0.4, max(logs) + 0.4]
    plot.layout["xaxis"] |= {"tickvals": [*ticks], "ticktext": [*ticks.values()], "range": ends}
    gap = {"type": "line", "x0": powers[0] - 0.3, "x1": powers[0] - 0.3, "yref": "paper", "y0": 0, "y1": 1}
    plot.layout["shapes"] = [gap | {"line": {"color": GREY, "width": 1}}]  # between 0 and the logarithmic part


def choose_classes(rates: np.ndarray) -> list[int]:
    """Return the classes of a heat map, of many those with the lowest mean in ``rates`` (rows, classes), in percent."""
    means = [np.mean(rate[~np.isnan(rate)]) if not np.isnan(rate).all() else np.inf for rate in rates.T]
    return sorted(np.argsort(means, kind="stable")[:MAX_CLASSES].tolist())


def _draw_heat(rates: np.ndarray, columns: Sequence[str], rows: Sequence[str], fields: Any, hover: str) -> go.Heatmap:
    """Return a heat map of percentages (rows, columns), with the texts ``fields`` unless there are many."""
    z = [[None if np.isnan(rate) else round(float(rate), 2) for rate in row] for row in rates]
    more = HEAT | {"text": fields, "texttemplate": "%{text}" if len(columns) <= MAX_LABELLED else ""}
    x, y = [*map(escape, columns)], [*map(escape, rows)]
    return go.Heatmap(z=z, x=x, y=y, hovertemplate=f"{hover}<extra></extra>", **more)


def plot_classes(data: StudyData, plot: Plot, text: Text) -> None:
    """Draw the accuracy of each class over methods, the mean over seeds, at each number of shots."""
    size = len(data.classes)
    for column in sorted(data.columns or [ZERO_SHOTS], key=lambda c: c != data.column):
        runs = {row: data.read_predictions(row, column) for row in data.get_cells(column)}
        rows = {row: [compute_class_accuracies(run, size) for run in each.values()] for row, each in runs.items()}
        if not (rows := {row: each for row, each in rows.items() if each}):
            continue
        rates = np.stack([np.mean(each, axis=0) for each in rows.values()])
        classes = choose_classes(rates)
        names = [data.classes[c] for c in classes]
        fields = [["" if np.isnan(rate) else f"{rate:.0f}" for rate in row] for row in rates[:, classes]]
        heat = _draw_heat(rates[:, classes], names, [*rows], fields, text("heat_hover"))
        note = text("classes_chosen", number=len(classes)) if len(classes) < size else ""
        plot.add([heat], text("column", column=column), note=note)
        plot.layout["height"] = 170 + 26 * len(rows)


def plot_confusion(data: StudyData, plot: Plot, text: Text) -> None:
    """Draw the confusion matrix of each method and number of shots; the note names the most frequent confusions."""
    for row, column, runs in data.list_predictions():
        pairs, size = count_pairs(runs), len(data.classes)
        totals = np.sum([np.bincount(run.labels, minlength=size) for run in runs], axis=0)
        hits = np.array([pairs[c, c] for c in range(size)])
        classes = choose_classes(np.where(totals, hits / np.maximum(totals, 1), np.nan)[None])
        names, counts = [data.classes[c] for c in classes], np.array([[pairs[t, p] for p in classes] for t in classes])
        rates = np.where(totals, 100 / np.maximum(totals, 1), np.nan)[classes, None] * counts
        heat = _draw_heat(rates, names, names, counts.tolist(), text("confusion_hover"))
        wrong = sorted((-count, t, p) for (t, p), count in pairs.items() if t != p)[:MAX_CONFUSIONS]
        parts = [
            text("confused", true=data.classes[t], predicted=data.classes[p], count=-count, total=totals[t])
            for count, t, p in wrong
        ]
        note = text("most_confused", pairs="; ".join(parts), runs=len(runs)) if parts else text("no_mistake")
        note += " " + text("classes_chosen", number=len(classes)) if len(classes) < size else ""
        plot.add([heat], row, text("column", column=column), note=note)
        plot.layout["height"] = max(560, 200 + 16 * len(classes))


def plot_reliability(data: StudyData, plot: Plot, text: Text) -> None:
    """Draw the reliability diagram of each method and number of shots; the note has the calibration error."""
    ideal = go.Scatter(x=[0, 100], y=[0, 100], mode="lines", line={"color": GREY, "dash": "dash"}, name=text("ideal"))
    centres, hover = [100 * (number + 0.5) / BINS for number in range(BINS)], text("bin_hover") + "<extra></extra>"
    for row, column, runs in data.list_predictions():
        counts, accuracy, confidence, errors = compute_calibration(runs)
        y = [None if np.isnan(value) else round(float(value), 2) for value in accuracy]
        details = [[int(n), f"{value:.1f}"] for n, value in zip(counts, confidence, strict=True)]
        bars = go.Bar(x=centres, y=y, width=100 / BINS, customdata=details, hovertemplate=hover, name=text("in_bin"))
        bars.marker = {"color": "#4c8bd0", "line": {"color": "#2b5f99", "width": 1}}
        note = text("calibration_note", error=f"{np.mean(errors):.2f}", images=f"{counts.sum():,}")
        plot.add([bars, ideal], row, text("column", column=column), note=note)


def plot_curves(data: StudyData, plot: Plot, text: Text) -> None:
    """Draw the loss and the learning rate over the epochs of each method and number of shots, by seed."""
    for row, column in data.list_choices():
        traces = []
        for run in data.table[row][column].runs:
            if points := read_curve(run):
                epochs, losses, rates = (
                    [float(f"{value:.4g}") for value in values] for values in zip(*points, strict=True)
                )
                line = {"mode": "lines", "x": epochs, "name": text("seed", seed=run.seed), "legendgroup": str(run.seed)}
                traces.append(go.Scatter(y=losses, **line))
                traces.append(go.Scatter(y=rates, yaxis="y2", showlegend=False, **line))
        if traces:
            plot.add(traces, row, text("column", column=column))


BUILDERS = {"shots": plot_shots, "parameters": plot_parameters, "classes": plot_classes}
BUILDERS |= {"confusion": plot_confusion, "reliability": plot_reliability, "curves": plot_curves}


def build_plots(data: StudyData, text: Text) -> dict[str, Plot]:
    """Return the plots by name; those without data are left out."""
    layouts = yaml.safe_load(LAYOUTS.read_text(encoding="utf-8"))
    plots = {name: Plot(layouts[name]) for name in BUILDERS}
    for name, plot in plots.items():
        BUILDERS[name](data, plot, text)
    return {name: plot for name, plot in plots.items() if plot.options}
