"""The page of the report: its sentences, tables and files for download, put into the template."""

from __future__ import annotations

import base64
import io
import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dassl import __version__
from dassl.data.decoding import ORIGINAL
from dassl.engine.record import RECORD_FILE
from dassl.utils import UserError
from dassl.utils.images import Decoding, read_image
from studies.tables.cells import OTHER, SHORTCUT, Cell, format_notes
from studies.tables.paired import Comparison
from studies.tables.runs import Run
from studies.tables.study import ALL_IMAGES, ZERO_SHOTS, format_column, format_parameters, get_group, to_frame

from .analysis import Mistake, find_mistakes
from .collect import FACTS, MAX_EPOCHS, StudyData, group_facts
from .figures import build_plots

FOLDER = Path(__file__).parent
SWEEPS = FOLDER.parents[1] / "configs/sweeps"
LANGUAGES = ("en", "zh")
MAX_MISTAKES = 24  # images of each of two methods: their thumbnails take some hundred kilobytes
THUMBNAIL = 128  # pixels of a thumbnail's longer side
MAX_LISTED = 8  # missing runs in the list before the rest is counted


class Texts:
    """The sentences of ``texts.yaml`` in one language; called with a key and the values in the sentence."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.entries = yaml.load((FOLDER / "texts.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)

    def __call__(self, key: str, column: int = ZERO_SHOTS, **values: object) -> str:
        """Return a sentence; ``column`` is a number of shots. The key of an unknown group gives the group's name."""
        if key.startswith("group_") and key not in self.entries:
            return key.removeprefix("group_")
        name = self("all_images") if column == ALL_IMAGES else format_column(column)
        return self.entries[key][self.language].format(column=name, **values)

    def join(self, names: Iterable[object]) -> str:
        """Return the names as a list in a sentence."""
        return self("separator").join(map(str, names))

    def translate_reason(self, reason: str) -> str:
        """Return a reason of ``compare_cells`` in the language; in English, if it is an unknown one."""
        for pattern, chinese in self.entries["reasons"] if self.language == "zh" else ():
            if match := re.fullmatch(pattern, reason):
                return match.expand(chinese)
        return reason


@dataclass
class Page:
    """What the template ``page.html`` shows of a study.

    Attributes:
        root: folder of the data sets, for the thumbnails; empty: as in the records.
        command: the words of the command that writes this report.
    """

    data: StudyData
    text: Texts
    root: str
    command: Sequence[str]

    def render(self) -> str:
        """Return the page as HTML."""
        from plotly.offline import get_plotlyjs

        jinja = Environment(
            loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        files = {name: Markup((FOLDER / f"page.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
        data, text, plots = self.data, self.text, build_plots(self.data, self.text)
        page_data = {
            "plots": {name: {"layout": plot.layout, "options": _pack(plot.options)} for name, plot in plots.items()},
            "compare": self.compare_all(),
            "texts": {key: entry[text.language] for key, entry in text.entries.items() if key.startswith("compare_")},
        }
        values: dict[str, Any] = {
            "page": self,
            "data": data,
            "t": text,
            "plots": plots,
            "page_data": page_data,
            **files,
        }
        values |= {"format_command": format_command, "format_parameters": format_parameters, "group_facts": group_facts}
        values["FACTS"] = FACTS
        values |= {
            "MAX_EPOCHS": MAX_EPOCHS,
            "MAX_LISTED": MAX_LISTED,
            "ALL_IMAGES": ALL_IMAGES,
            "ZERO_SHOTS": ZERO_SHOTS,
        }
        html = jinja.get_template("page.html").render(values, plotly=Markup(get_plotlyjs()), version=__version__)
        # Names of files that are not UTF-8 have lone surrogates, which become \udc80.
        return html.encode("utf-8", "backslashreplace").decode("utf-8")

    # ---- What was run, and the answer ----

    def list_weights(self) -> list[str]:
        """Return the weights of CLIP that the runs have."""
        return sorted({run.facts["weights"] for run in self.data.runs if "weights" in run.facts})

    def list_days(self) -> list[str]:
        """Return the first and the last day on which records were written, as ISO dates, once if they are the same."""
        days = {date.fromtimestamp((run.folder / RECORD_FILE).stat().st_mtime).isoformat() for run in self.data.runs}
        return sorted({min(days), max(days)})

    def answer(self) -> Iterator[str]:
        """Yield the answer: how the best method compares with zero-shot CLIP, and which has the fewest parameters."""
        data, text, best = self.data, self.text, self.data.best[self.data.column]
        values: dict[str, Any] = {"column": data.column, "method": best.method, "cell": best.cell}
        if not data.columns:
            yield text("only_zero", **values)
            return
        if data.zero_shot in (None, best.method):
            yield text("no_zero" if data.zero_shot is None else "zero_best", **values)
        else:
            result, zero_cell = (
                data.compare(best.method, data.zero_shot, data.column),
                data.table[data.zero_shot][ZERO_SHOTS],
            )
            values |= {"zero": data.zero_shot, "zero_cell": zero_cell}
            if isinstance(result, str):
                yield text("gain_unknown", **values, reason=text.translate_reason(result))
            else:
                values |= {"gap": f"{result.difference:.2f}", "half": f"{result.half_width:.2f}"}
                values |= {"seeds": result.seeds, "images": f"{result.images:,}"}
                yield text("gain_shown" if result.is_shown else "gain_equal", **values)
        yield from self._describe_fewest()

    def _describe_fewest(self) -> Iterator[str]:
        """Yield the sentence on the fewest parameters that are not shown to be less accurate than the best method."""
        data, text = self.data, self.text
        cells, fewest, trained = data.get_cells(data.column), data.find_fewest(), data.find_fewest(least=1)
        if fewest is None:
            if reasons := [*data.best[data.column].unknown.values()]:
                yield text("fewest_unknown", reason=text.translate_reason(reasons[0]))
            return
        values: dict[str, Any] = {"zero": fewest[0], "zero_cell": cells[fewest[0]]}
        if trained is None:
            yield text("fewest_zero", **values)
        else:
            values |= {"method": trained[0], "count": f"{trained[1]:,}", "cell": cells[trained[0]]}
            yield text("fewest" if fewest[1] else "fewest_trained", **values)

    def describe_certainty(self, column: int) -> str:
        """Return whether the best method at a number of shots is certain."""
        text, best = self.text, self.data.best[column]
        if best.equal:
            return text("certain_no", equal=text.join(best.equal))
        if best.unknown:
            reason = text.translate_reason(next(iter(best.unknown.values())))
            return text("certain_unknown", count=len(best.unknown), reason=reason)
        return text("certain_yes", count=len(best.above)) if best.above else text("certain_alone")

    # ---- The table ----

    def group_rows(self) -> list[tuple[str, list[str]]]:
        """Return the groups of methods, each with its rows."""
        table = self.data.study.table
        return [(group, [*rows]) for group, rows in itertools.groupby(table, key=lambda row: get_group(table[row]))]

    def describe_table(self) -> Iterator[str]:
        """Yield the sentences below the table: on the interval, seeds, test images, weights and marks."""
        cells, text = self.data.study.cells.values(), self.text
        yield text("note_interval" if any(cell.has_interval for cell in cells) else "note_no_interval")
        yield text("note_seeds", seeds=text.join(self.data.seeds))
        yield from (text("note_images", images=f"{n:,}", points=f"{100 / n:.2f}") for n in self.data.sizes if n)
        yield text("note_weights", weights="; ".join(self.list_weights()) or "-")
        marks = {mark for cell in cells for mark in cell.marks}
        yield from (text(key) for mark, key in ((SHORTCUT, "note_shortcut"), (OTHER, "note_other")) if mark in marks)

    def list_notes(self) -> list[str]:
        """Return the notes of the table, which are in English."""
        study = self.data.study
        return [line.lstrip("\\") for line in format_notes(study.cells, study.notes, {}) if line]

    def csv(self) -> str:
        """Return the table as the data URI of a CSV file, in which Excel finds UTF-8."""
        return to_uri(to_frame(self.data.study.table).to_csv().encode("utf-8-sig", "backslashreplace"), "text/csv")

    def latex(self) -> str:
        """Return the table as the data URI of a LaTeX file, with the rules of the package booktabs."""
        frame = to_frame(self.data.study.table).rename_axis(None)
        style = frame.style.format(escape="latex").format_index(escape="latex").format_index(escape="latex", axis=1)
        table = style.to_latex(hrules=True, column_format="l" + "r" * frame.shape[1])
        notes = "".join(f"% {note}\n" for note in self.describe_table())
        table = table.replace("±", r"$\pm$").replace(OTHER, r"$\dagger$")
        return to_uri(f"% \\usepackage{{booktabs}}\n{table}{notes}".encode("utf-8", "backslashreplace"), "text/x-tex")

    # ---- The gallery, the cost ----

    def galleries(self) -> Iterator[tuple[str, int, list[tuple[Mistake, str]]]]:
        """Yield the most confident mistakes of the best method and of zero-shot CLIP: row, shots, mistakes, images."""
        data = self.data
        for row in dict.fromkeys(row for row in (data.best[data.column].method, data.zero_shot) if row):
            column = data.column if data.column in data.table[row] else ZERO_SHOTS
            mistakes = find_mistakes(data.read_predictions(row, column), data.classes, MAX_MISTAKES)
            runs = {run.seed: run for run in data.table[row][column].runs}
            if mistakes:
                yield (
                    row,
                    column,
                    [(mistake, self._make_thumbnail(mistake, runs[mistake.seed])) for mistake in mistakes],
                )

    def _make_thumbnail(self, mistake: Mistake, run: Run) -> str:
        """Return a small image as a data URI, decoded as in the run; "" if there is none that can be read."""
        orientation = run.config.get("INPUT.ORIENTATION") or ORIGINAL.orientation
        decoding = Decoding(max(run.config.get("INPUT.WHITE_LEVEL", ORIGINAL.white_level), 0), orientation)
        try:
            image = read_image(self.image_folder(run) / mistake.path, decoding)
        except UserError:
            return ""
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file, kind = io.BytesIO(), "jpeg" if max(image.size) > THUMBNAIL // 2 else "png"
        image.save(file, kind, quality=80)
        return to_uri(file.getvalue(), f"image/{kind}")

    def image_folder(self, run: Run) -> Path:
        """Return the folder of a run's data sets."""
        return Path(self.root or str(run.config.get("DATASET.ROOT", "."))).expanduser()

    def format_cost(self, cell: Cell, key: str, unit: float = 1) -> str:
        """Return the range of a cost over a cell's runs, such as ``5.1 to 6.3``, with the marks of the notes."""
        records = [run.record for run in cell.runs]
        numbers = [value / unit for record in records if isinstance(value := record.get(key), (int, float))]
        if not numbers:
            return self.text("not_recorded")
        ends = [f"{number:,.{1 if number < 100 else 0}f}" for number in (min(numbers), max(numbers))]
        shared = "≤ " * (key == "peak_memory" and any("earlier_runs" in record for record in records))
        return shared + self.text("range").join(dict.fromkeys(ends)) + "‡" * any("resumed_epoch" in r for r in records)

    # ---- Comparisons, provenance ----

    def compare_all(self) -> dict[str, Any]:
        """Return the comparisons of all pairs of rows for the page's script.

        ``results`` has, for each pair of numbers of ``rows`` and each of ``columns``, [difference, half width, seeds,
        images] or the number of a reason in ``reasons``. ``first`` and ``second`` are the rows shown first.
        """
        data, text, rows = self.data, self.text, [*self.data.table]
        columns = {text("all_shots"): None, **{text("column", column=c): c for c in data.columns}}
        reasons: dict[str, int] = {}
        results: dict[str, list] = {}
        for (i, first), (j, second) in itertools.combinations(enumerate(rows), 2):
            for column in columns.values():
                found = data.compare(first, second, column)
                if isinstance(found, Comparison):
                    entry: Any = [round(found.difference, 3), round(found.half_width, 3), found.seeds, found.images]
                else:
                    entry = reasons.setdefault(text.translate_reason(found), len(reasons))
                results.setdefault(f"{i},{j}", []).append(entry)
        best = data.best[data.column].method
        second = next((row for row in (data.zero_shot, *rows) if row and row != best), best)
        page = {"rows": rows, "columns": [*columns], "reasons": [*reasons], "results": results}
        return page | {"first": rows.index(best), "second": rows.index(second), "column": len(columns) - 1}

    def format_sweep(self, seeds: Iterable[int]) -> str:
        """Return the command of the shortest sweep of the repository that has all runs; SWEEP.yaml if none has."""
        folder, config = self.data.folder, self.data.runs[0].config
        names = [run.folder.relative_to(folder).as_posix() for run in self.data.runs]
        found = "SWEEP.yaml"
        for path in sorted(SWEEPS.glob("*.yaml"), key=lambda path: -path.stat().st_size):
            sweep = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
            patterns = [re.sub(r"\\{\w+\\}", "[^/]+", re.escape(entry["folder"])) for entry in sweep["runs"]]
            is_data = f"datasets/{config.get('DATASET.NAME', '')}.yaml".lower() in sweep.get("arguments", "").lower()
            if is_data and all(any(re.fullmatch(pattern, name) for pattern in patterns) for name in names):
                found = path.name
        words = ["python", "tools/sweep.py", f"configs/sweeps/{found}", "--output-dir", folder]
        root = str(config.get("DATASET.ROOT", "./data"))
        words += ["--seeds", ",".join(map(str, seeds)), *([] if root == "./data" else ["--root", root])]
        return format_command(words)


def _pack(options: dict[tuple[str, ...], tuple[list, str]]) -> list[dict[str, Any]]:
    """Return the choices of a plot for the page's script."""
    packed = ((key, [trace.to_plotly_json() for trace in traces], note) for key, (traces, note) in options.items())
    return [{"key": key, "data": data, "note": note} for key, data, note in packed]


def format_command(words: Iterable[object]) -> str:
    """Return a command line to copy into a shell."""
    return shlex.join(map(str, words))


def to_uri(content: bytes, media_type: str) -> str:
    """Return a data URI, which a link downloads without a request."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
