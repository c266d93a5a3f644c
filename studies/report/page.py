"""The page of the report: its sentences, tables and files for download, put into the template."""

from __future__ import annotations

import base64
import io
import itertools
import re
import shlex
from collections.abc import Iterable, Sequence
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dassl import __version__
from dassl.utils import UnreadableImageError
from dassl.utils.images import read_image
from studies.tables.cells import OTHER, SHORTCUT, Cell, format_notes
from studies.tables.paired import Comparison
from studies.tables.runs import Run
from studies.tables.study import ALL_IMAGES, ZERO_SHOTS, format_column, format_parameters, get_group, to_frame

from . import figures
from .analysis import Mistake, compute_calibration, find_mistakes
from .collect import MAX_EPOCHS, StudyData, get_dates, get_image_folder, get_run_decoding, group_facts, read_curve

FOLDER = Path(__file__).parent
SWEEPS = FOLDER.parents[1] / "configs/sweeps"
LANGUAGES = ("en", "zh")
MAX_MISTAKES = 24  # images of each of two methods: all thumbnails are a fraction of a megabyte
THUMBNAIL = 128  # pixels of a thumbnail's longer side
MAX_LISTED = 8  # values or runs in a list before the rest is summed up
LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}
LATEX |= {
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "<": "$<$",
    ">": "$>$",
}


class Texts:
    """The sentences of ``texts.yaml`` in one language; called with a key and the values in the sentence."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.entries = yaml.safe_load((FOLDER / "texts.yaml").read_text(encoding="utf-8"))

    def __call__(self, key: str, column: int = ZERO_SHOTS, **values: object) -> str:
        """Return a sentence; ``column`` is a number of shots. The key of an unknown group gives the group's name."""
        if key.startswith("group_") and key not in self.entries:
            return key.removeprefix("group_")
        name = self("all_images") if column == ALL_IMAGES else format_column(column)
        return self.entries[key][self.language].format(column=name, **values)

    def translate_reason(self, reason: str) -> str:
        """Return a reason of ``compare_cells`` in the language; in English, if it is an unknown one."""
        for pattern, chinese in self.entries["reasons"] if self.language == "zh" else ():
            if match := re.fullmatch(pattern, reason):
                return match.expand(chinese)
        return reason

    def join(self, names: Iterable[str]) -> str:
        """Return the names as a list in a sentence."""
        return self("separator").join(names)


def build_page(data: StudyData, language: str, root: str, command: Sequence[str]) -> str:
    """Return the report as HTML.

    Args:
        language: one of LANGUAGES.
        root: folder of the data sets, for the thumbnails; empty: as in the records.
        command: the words of the command that writes this report.
    """
    text = Texts(language)
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    files = {name: Markup((FOLDER / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js")}
    plots = build_plots(data, text)
    page = environment.get_template("page.html").render(
        t=text,
        data=data,
        title=text("title", folder=data.folder.resolve().name),
        css=files["page.css"],
        script=files["page.js"],
        plotly=Markup(read_plotly()),
        summary=summarise(data, text),
        answer=answer(data, text),
        best=describe_best(data, text),
        one_seed_command=format_sweep(data, "1,2,3") if len(list_seeds(data)) < 2 and data.columns else "",
        table=build_table(data, text),
        notes=describe_table(data, text),
        table_notes=[line.lstrip("\\") for line in format_notes(data.study.cells, data.study.notes, {}) if line],
        missing=[f"{path}: {reason}" for path, reason in data.study.missing.items()],
        csv=to_uri("﻿" + to_frame(data.study.table).to_csv(), "text/csv"),
        latex=to_uri(to_latex(data, text), "application/x-tex"),
        plots=plots,
        has_parameters=any(cell.parameters for cell in data.study.cells.values()),
        chance=f"{100 / len(data.classes):.2f}" if data.classes else "",
        calibration=[],
        galleries=build_galleries(data, text, root),
        gallery_note=describe_images(data, text, root),
        cost=build_cost(data, text),
        facts=list_facts(data),
        commands=[
            format_command(["python", "train.py", *map(str, run.record.get("command", []))]) for run in data.runs
        ],
        sweep=format_sweep(data, ",".join(map(str, list_seeds(data)))),
        report=format_command(command),
        rerun=format_command(["python", "tools/rerun.py", str(data.runs[0].folder / "result.json")]),
        page_data={
            "plots": {name: {"layout": p.layout, "options": pack(p), "note": p.note} for name, p in plots.items()},
            "compare": compare_all(data, text),
            "texts": {
                key: text.entries[key][language] for key in text.entries if key.startswith(("compare_", "side_"))
            },
        },
        limits={"epochs": MAX_EPOCHS, "listed": MAX_LISTED},
        version=__version__,
        other=OTHER,
    )
    # Names of files that are not UTF-8 have lone surrogates, which become \udc80.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


@cache
def read_plotly() -> str:
    """Return plotly.js, which the page has inside."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def pack(plot: figures.Plot) -> list[dict[str, Any]]:
    """Return the choices of a plot for the page's script."""
    return [{"key": list(key), "data": traces, "note": note} for key, (traces, note) in plot.options.items()]


def build_plots(data: StudyData, text: Texts) -> dict[str, figures.Plot]:
    """Return the plots by the names of their sections; those without data are left out."""
    styles = figures.choose_styles(data)
    predictions = figures.list_predictions(data)
    calibrations = {(row, column): compute_calibration(runs) for row, column, runs in predictions}
    plots = {
        "shots": figures.plot_shots(data, styles, text),
        "parameters": figures.plot_parameters(data, styles, text),
        "classes": figures.plot_classes(data, text),
        "confusion": figures.plot_confusion(data, predictions, text),
        "reliability": figures.plot_reliability(calibrations, text),
        "curves": figures.plot_curves(data, text),
    }
    if not data.columns:
        del plots["shots"]
    return {name: plot for name, plot in plots.items() if plot.options}


# ---- What was run, and the answer ----


def list_seeds(data: StudyData) -> list[int]:
    """Return the seeds of the runs that train, or of all runs if none does."""
    return sorted({run.seed for run in data.runs if run.is_trained} or {run.seed for run in data.runs})


def list_sizes(data: StudyData) -> list[int]:
    """Return the numbers of test images."""
    return sorted({total for run in data.runs if isinstance(total := run.record.get("total"), int)})


def summarise(data: StudyData, text: Texts) -> list[tuple[str, str]]:
    """Return what was run, as (head, value)."""
    rows = [row for row, cells in data.study.table.items() if any(cell.accuracies for cell in cells.values())]
    names = text.join(sorted({str(run.record.get("dataset")) for run in data.runs}))
    weights = sorted({run.facts["weights"] for run in data.runs if "weights" in run.facts})
    shots = [text("all") if column == ALL_IMAGES else str(column) for column in data.columns]
    return [
        (text("methods_run"), text("methods_value", count=len(rows), names=text.join(rows))),
        (text("data_set"), text("data_value", names=names, classes=len(data.classes))),
        (text("weights"), "; ".join(weights) or "-"),
        (text("shots"), text.join(shots) or "-"),
        (text("seeds"), text.join(map(str, list_seeds(data)))),
        (text("test_images"), text.join(f"{size:,}" for size in list_sizes(data)) or "-"),
        (text("runs_done"), text("runs_value", count=len(data.runs), missing=len(data.study.missing))),
        (text("dates"), " – ".join(get_dates(data.runs))),
    ]


def answer(data: StudyData, text: Texts) -> list[str]:
    """Return two sentences that the figures carry: on the best method, and on the one with the fewest parameters."""
    best = data.best.get(data.column)
    if best is None:
        return []
    values: dict[str, Any] = {"column": data.column, "method": best.method, "cell": best.cell}
    if not data.columns:
        return [text("only_zero", **values)]
    if data.zero_shot is None or data.zero_shot == best.method:
        return [text("no_zero", **values), *describe_fewest(data, text)]
    result = data.compare(best.method, data.zero_shot, data.column)
    values |= {"zero": data.zero_shot, "zero_cell": data.get_cell(data.zero_shot, ZERO_SHOTS)}
    if isinstance(result, Comparison):
        key = "gain_shown" if result.is_shown else "gain_equal"
        return [text(key, **values, **describe_comparison(result, text)), *describe_fewest(data, text)]
    return [text("gain_unknown", **values, reason=text.translate_reason(result)), *describe_fewest(data, text)]


def describe_comparison(result: Comparison, text: Texts) -> dict[str, Any]:
    """Return the values of a comparison in sentences."""
    side = text("higher" if result.difference >= 0 else "lower")
    gap, half = f"{abs(result.difference):.2f}", f"{result.half_width:.2f}"
    return {"side": side, "gap": gap, "half": half, "seeds": result.seeds, "images": f"{result.images:,}"}


def describe_fewest(data: StudyData, text: Texts) -> list[str]:
    """Return the sentence on the fewest parameters that are not shown to be less accurate than the best method."""
    least, trained = data.find_fewest(False), data.find_fewest(True)
    if least is None:
        reasons = [*data.best[data.column].unknown.values()]
        return [text("fewest_unknown", reason=text.translate_reason(reasons[0]))] if reasons else []
    values = {} if trained is None else {"method": trained[0], "count": f"{trained[1]:,}"}
    values |= {} if trained is None else {"cell": data.get_cell(trained[0], data.column)}
    if least[1]:
        return [text("fewest", **values)]
    key = "fewest_zero_only" if trained is None else "fewest_zero"
    return [text(key, zero_method=least[0], zero_cell=data.get_cell(least[0], data.column), **values)]


def describe_best(data: StudyData, text: Texts) -> list[tuple]:
    """Return, for each number of shots, its name, the best method, its accuracy, whether that is certain, and above."""
    rows = []
    for column, best in data.best.items():
        certain = text("certain_yes", count=len(best.above)) if best.above else text("certain_alone")
        if best.unknown:
            reason = text.translate_reason(next(iter(best.unknown.values())))
            certain = text("certain_unknown", count=len(best.unknown), reason=reason)
        if best.equal:
            certain = text("certain_no", equal=text.join(best.equal))
        is_certain = not best.unknown and not best.equal
        rows.append(
            (text("column", column=column), best.method, str(best.cell), certain, [] if is_certain else best.above)
        )
    return rows


# ---- The table ----


def build_table(data: StudyData, text: Texts) -> dict[str, Any]:
    """Return the table: the heads of its columns, and of each row its group, name, cells (text, seeds), parameters."""
    columns = sorted({column for cells in data.study.table.values() for column in cells})
    rows = []
    for row, cells in data.study.table.items():
        parts = [(str(cells.get(c, "-")), list_seed_accuracies(cells.get(c), text)) for c in columns]
        rows.append(
            {"group": get_group(cells), "name": row, "cells": parts, "parameters": format_parameters(cells.values())}
        )
    groups = [(group, [*members]) for group, members in itertools.groupby(rows, key=itemgetter("group"))]
    return {"heads": [text("column", column=column) for column in columns], "groups": groups}


def list_seed_accuracies(cell: Cell | None, text: Texts) -> list[str]:
    """Return the accuracy of each seed of a cell, and the cell's notes."""
    runs = cell.runs if cell else []
    return [f"{text('seed', seed=run.seed)}: {run.accuracy:.2f}%" for run in runs] + [*(cell.notes if cell else ())]


def describe_table(data: StudyData, text: Texts) -> list[str]:
    """Return the sentences below the table: on the interval, seeds, test images, weights and marks."""
    cells, sizes = data.study.cells.values(), list_sizes(data)
    notes = [text("note_interval" if any(cell.has_interval for cell in cells) else "note_no_interval")]
    notes += [text("note_seeds", seeds=text.join(map(str, list_seeds(data))))]
    notes += [text("note_images", images=f"{size:,}", points=f"{100 / size:.2f}") for size in sizes if size]
    weights = sorted({run.facts["weights"] for run in data.runs if "weights" in run.facts})
    notes += [text("note_weights", weights="; ".join(weights))] if weights else []
    marks = {mark for cell in cells for mark in cell.marks}
    return notes + [text(key) for mark, key in ((SHORTCUT, "note_shortcut"), (OTHER, "note_other")) if mark in marks]


def to_latex(data: StudyData, text: Texts) -> str:
    """Return the table for LaTeX, with the rules of the package booktabs."""
    frame = to_frame(data.study.table)
    lines = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{l{'r' * frame.shape[1]}}}", r"\toprule"]
    lines += [_to_latex_row([frame.index.name, *frame.columns]), r"\midrule"]
    groups = [get_group(cells) for cells in data.study.table.values()]
    for number, (row, cells) in enumerate(zip(frame.index, frame.to_numpy(), strict=True)):
        if number and groups[number] != groups[number - 1]:
            lines.append(r"\addlinespace")
        lines.append(_to_latex_row([row, *cells]))
    notes = [f"% {note}" for note in describe_table(data, text)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes]) + "\n"


def _to_latex_row(cells: Iterable[str]) -> str:
    """Return a row of a LaTeX table."""
    return " & ".join("".join(LATEX.get(letter, letter) for letter in cell) for cell in cells) + r" \\"


def to_uri(content: str | bytes, media_type: str) -> str:
    """Return a data URI, which a link downloads without a request."""
    content = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


# ---- The gallery ----


def build_galleries(data: StudyData, text: Texts, root: str) -> list[dict[str, Any]]:
    """Return the most confident mistakes of the best method and of zero-shot CLIP."""
    galleries = []
    rows = dict.fromkeys(row for row in (data.best[data.column].method, data.zero_shot) if row)
    for row in rows:
        predictions, cell = data.read_predictions(row, data.column), data.get_cell(row, data.column)
        mistakes = find_mistakes(predictions, data.classes, MAX_MISTAKES)
        if mistakes and cell:
            runs = {run.seed: run for run in cell.runs}
            images = [(mistake, make_thumbnail(mistake, runs[mistake.seed], root)) for mistake in mistakes]
            column = data.column if runs[mistakes[0].seed].is_trained else ZERO_SHOTS
            head = text("gallery_of", method=row, column=column)
            galleries.append({"head": head, "mistakes": images, "seeds": len(runs)})
    return galleries


def make_thumbnail(mistake: Mistake, run: Run, root: str) -> str:
    """Return a small image as a data URI, decoded as in the run; "" if it cannot be read."""
    if run.config.get("DATASET.FEATURES"):
        return ""
    try:
        image = read_image(get_image_folder(run, root) / mistake.path, get_run_decoding(run))
    except UnreadableImageError:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file, kind = io.BytesIO(), "jpeg" if max(image.size) > THUMBNAIL // 2 else "png"
    image.save(file, kind, quality=80)
    return to_uri(file.getvalue(), f"image/{kind}")


def describe_images(data: StudyData, text: Texts, root: str) -> str:
    """Return why there may be no images: the data set is a file of features, or its folder is not there; else ""."""
    run = data.runs[0]
    if run.config.get("DATASET.FEATURES"):
        return text("features_only")
    folder = get_image_folder(run, root)
    return "" if folder.is_dir() else text("images_absent", folder=folder)


# ---- Cost, comparisons, provenance ----


def build_cost(data: StudyData, text: Texts) -> dict[str, Any]:
    """Return the rows of the cost table (name, seconds, CPU seconds, memory, parameters), and the notes below it."""
    cells, rows = data.list_cells(data.column, False), []
    for row, cell in cells.items():
        records = [run.record for run in cell.runs]
        mark = "‡" * any("resumed_epoch" in record for record in records)
        shared = "≤ " * any("earlier_runs" in record for record in records)
        peaks = [n / 2**20 for record in records if isinstance(n := record.get("peak_memory"), int)]
        times = [_format_range([r.get(key) for r in records], text) + mark for key in ("seconds", "cpu_seconds")]
        memory = (shared if peaks else "") + _format_range(peaks, text) + mark
        rows.append((row, *times, memory, format_parameters([cell])))
    texts = [part for row in rows for part in row]
    notes = [text("cost_shared")] if any("≤" in part for part in texts) else []
    notes += [text("cost_resumed")] if any("‡" in part for part in texts) else []
    facts = group_facts(run for cell in cells.values() for run in cell.runs)
    machines = max((len(facts[key]) for key in ("system", "device") if key in facts), default=1)
    return {"rows": rows, "notes": notes + ([text("cost_machines", count=machines)] if machines > 1 else [])}


def _format_range(values: Sequence[Any], text: Texts) -> str:
    """Return ``5.1 – 6.3``: the least and the greatest of the numbers in ``values``."""
    numbers = [value for value in values if isinstance(value, (int, float))]
    if not numbers:
        return text("not_recorded")
    ends = [f"{number:,.{1 if number < 100 else 0}f}" for number in (min(numbers), max(numbers))]
    return " – ".join(dict.fromkeys(ends))


def compare_all(data: StudyData, text: Texts) -> dict[str, Any]:
    """Return the comparisons of all pairs of rows for the page's script.

    ``results`` has, for each pair of numbers of rows and each of ``columns``, [difference, half width, seeds, images]
    or the number of a reason in ``reasons``.
    """
    rows = [row for row in data.study.table if data.select(row, None)]
    columns = {text("all_shots"): None} | {text("column", column=c): c for c in data.columns}
    reasons: dict[str, int] = {}
    results = {}
    for (i, first), (j, second) in itertools.combinations(enumerate(rows), 2):
        found: list[Any] = []
        for column in columns.values():
            result = data.compare(first, second, column)
            if isinstance(result, Comparison):
                found.append([round(result.difference, 3), round(result.half_width, 3), result.seeds, result.images])
            else:
                found.append(reasons.setdefault(text.translate_reason(result), len(reasons)))
        results[f"{i},{j}"] = found
    best = rows.index(data.best[data.column].method)
    second = rows.index(data.zero_shot) if data.zero_shot and rows.index(data.zero_shot) != best else int(best == 0)
    return {
        "rows": rows,
        "columns": [*columns],
        "reasons": [*reasons],
        "results": results,
        "first": best,
        "second": second,
    }


def list_facts(data: StudyData) -> list[tuple[str, list[tuple[str, int]]]]:
    """Return where results are from: the key of each fact, and its values with the number of their runs."""
    facts = group_facts(data.runs)
    return [(key, [(value, len(runs)) for value, runs in values.items()]) for key, values in facts.items()]


def format_command(words: Sequence[str]) -> str:
    """Return a command line to copy into a shell."""
    return shlex.join(words)


def format_sweep(data: StudyData, seeds: str) -> str:
    """Return the command of the sweep that writes into a folder of the study's name; SWEEP.yaml if it is unknown."""
    name, run = data.folder.resolve().name, data.runs[0]
    files = sorted(SWEEPS.glob("*.yaml"))
    outputs = {file: yaml.safe_load(file.read_text(encoding="utf-8")).get("output", "") for file in files}
    sweep = next((file.name for file, output in outputs.items() if Path(output).name == name), "SWEEP.yaml")
    root = str(run.config.get("DATASET.ROOT", "./data"))
    words = ["python", "tools/sweep.py", f"configs/sweeps/{sweep}", "--output-dir", str(data.folder), "--seeds", seeds]
    return format_command([*words, *([] if root == "./data" else ["--root", root])])
