"""The page of the report: its sentences, tables and files for download, put into the template."""

from __future__ import annotations

import base64
import io
import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dassl import __version__
from dassl.data.decoding import ORIGINAL
from dassl.engine.record import RECORD_FILE
from dassl.utils import UserError, escape_formula, join_below
from dassl.utils.images import Decoding, read_image
from studies.tables.cells import OTHER, Cell, format_notes
from studies.tables.paired import Comparison
from studies.tables.runs import Run
from studies.tables.study import ALL_IMAGES, ZERO_SHOTS, format_column, format_parameters, get_group, to_frame

from .analysis import Mistake, find_mistakes
from .collect import MAX_EPOCHS, StudyData, list_facts
from .figures import build_plots

FOLDER = Path(__file__).parent
SWEEPS = FOLDER.parents[1] / "configs/sweeps"
LANGUAGES = ("en", "zh")
MAX_MISTAKES = 24  # images of each of two methods: their thumbnails take some hundred kilobytes
THUMBNAIL = 128  # pixels of a thumbnail's longer side
CONFIG_KEY = re.compile(r"[A-Z_]+(\.[A-Z0-9_]+)+")  # such as OPTIM.MAX_EPOCH, in a command
MAX_LISTED = 8  # missing runs in the list before the rest is counted


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
    """What the template ``page.html`` shows of a study; ``command`` are the words of the command that writes it.

    ``root`` is the folder of the data sets, for the thumbnails; empty: as in the records.
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
        jinja.globals.update(join_words=shlex.join, format_notes=format_notes, format_parameters=format_parameters)
        jinja.globals.update(MAX_EPOCHS=MAX_EPOCHS, MAX_LISTED=MAX_LISTED, ALL_IMAGES=ALL_IMAGES, ZERO_SHOTS=ZERO_SHOTS)
        plots, entries = build_plots(self.data, self.text), self.text.entries.items()
        texts = {key: entry[self.text.language] for key, entry in entries if key.startswith(("axis_", "compare_"))}
        page_data = {
            "plots": {name: vars(p) for name, p in plots.items()},
            "compare": self.compare_all(),
            "texts": texts,
        }
        values = {"page": self, "data": self.data, "t": self.text, "plots": plots, "page_data": page_data}
        values |= {name: (FOLDER / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
        html = jinja.get_template("page.html").render(values, plotly=get_plotlyjs(), version=__version__)
        # Names of files that are not UTF-8 have lone surrogates, which become \udc80.
        return html.encode("utf-8", "backslashreplace").decode("utf-8")

    def list_weights(self) -> list[str]:
        """Return the weights of CLIP that the runs have."""
        return sorted({run.facts["weights"] for run in self.data.runs if "weights" in run.facts})

    def list_days(self) -> list[str]:
        """Return the first and the last day on which records were written, as ISO dates, once if they are the same."""
        days = {date.fromtimestamp((run.folder / RECORD_FILE).stat().st_mtime).isoformat() for run in self.data.runs}
        return sorted({min(days), max(days)})

    def group_rows(self) -> list[tuple[str, list[str]]]:
        """Return the groups of methods, each with its rows."""
        table = self.data.study.table
        return [(group, [*rows]) for group, rows in itertools.groupby(table, key=lambda row: get_group(table[row]))]

    def csv(self) -> str:
        """Return the table as the data URI of a CSV file, in which Excel finds UTF-8."""
        text = to_frame(self.data.study.table).rename(escape_formula).to_csv()
        return to_uri(text.encode("utf-8-sig", "backslashreplace"), "text/csv")

    def latex(self) -> str:
        """Return the table as the data URI of a LaTeX file, with the rules of the package booktabs."""
        frame = to_frame(self.data.study.table).rename_axis(None)
        style = frame.style.format(escape="latex").format_index(escape="latex").format_index(escape="latex", axis=1)
        table = style.to_latex(hrules=True, column_format="l" + "r" * frame.shape[1])
        table = table.replace("±", r"$\pm$").replace(OTHER, r"$\dagger$")
        return to_uri(f"% \\usepackage{{booktabs}}\n{table}".encode("utf-8", "backslashreplace"), "text/x-tex")

    def find_mistakes(self, row: str, column: int) -> list[tuple[Mistake, str]]:
        """Return the most confident mistakes of a cell, each with its image as a data URI, or "" if there is none."""
        mistakes = find_mistakes(self.data.read_predictions(row, column), self.data.classes, MAX_MISTAKES)
        runs = {run.seed: run for run in self.data.table[row][column].runs}
        return [(mistake, self._make_thumbnail(mistake, runs[mistake.seed])) for mistake in mistakes]

    def _make_thumbnail(self, mistake: Mistake, run: Run) -> str:
        """Return a small image as a data URI, decoded as in the run; "" if there is none that can be read."""
        orientation = run.config.get("INPUT.ORIENTATION") or ORIGINAL.orientation
        try:
            decoding = Decoding(max(run.config.get("INPUT.WHITE_LEVEL", ORIGINAL.white_level), 0), orientation)
            image = read_image(join_below(self.image_folder(run), mistake.path), decoding)
        except (UserError, TypeError):  # the second: a damaged config
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

    def compare_all(self) -> dict[str, Any]:
        """Return the comparisons of all pairs of rows for the page's script.

        ``results`` has, for each pair of numbers of ``rows`` and each of ``columns``, [difference, half width, seeds,
        images] or the number of a reason in ``reasons``. ``first`` and ``second`` are the rows shown first.
        """
        data, text, rows = self.data, self.text, [*self.data.table]
        columns = {text("all_shots"): None, **{text("column", column=c): c for c in data.columns}}
        reasons: dict[str, int] = {}

        def pack(found: Comparison | str) -> list | int:
            """Return a comparison as a list, or the number of its reason."""
            if isinstance(found, Comparison):
                return [round(found.difference, 3), round(found.half_width, 3), found.seeds, found.images]
            return reasons.setdefault(text.translate_reason(found), len(reasons))

        pairs = itertools.combinations(enumerate(rows), 2)
        results = {f"{i},{j}": [pack(data.compare(a, b, c)) for c in columns.values()] for (i, a), (j, b) in pairs}
        best = data.best[data.column].method
        second = next((row for row in (data.zero_shot, *rows) if row and row != best), best)
        page = {"rows": rows, "columns": [*columns], "reasons": [*reasons], "results": results}
        return page | {"first": rows.index(best), "second": rows.index(second), "column": len(columns) - 1}

    def group_facts(self) -> dict[str, Counter[str]]:
        """Return where results are from: by the fact's key, the number of runs of each value."""
        facts = [list_facts(run) for run in self.data.runs]
        keys = [name.removeprefix("fact_") for name in self.text.entries if name.startswith("fact_")]
        counts = {key: Counter(each[key] for each in facts if key in each) for key in keys}
        return {key: values for key, values in counts.items() if values}

    def format_sweep(self, seeds: Iterable[int]) -> str:
        """Return the command of the shortest sweep of the repository that has all runs; SWEEP.yaml if none has."""
        folder, config = self.data.folder, self.data.runs[0].config
        names = [run.folder.relative_to(folder).as_posix() for run in self.data.runs]
        found, text = "SWEEP.yaml", ""
        for path in sorted(SWEEPS.glob("*.yaml"), key=lambda path: -path.stat().st_size):
            sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
            patterns = [re.sub(r"\\{\w+\\}", "[^/]+", re.escape(entry["folder"])) for entry in sweep["runs"]]
            is_data = f"datasets/{config.get('DATASET.NAME', '')}.yaml".lower() in sweep.get("arguments", "").lower()
            if is_data and all(any(re.fullmatch(pattern, name) for pattern in patterns) for name in names):
                found, text = path.name, path.read_text(encoding="utf-8")
        words = ["python", "tools/sweep.py", f"configs/sweeps/{found}", "--output-dir", str(folder)]
        root = str(config.get("DATASET.ROOT", "./data"))
        words += ["--seeds", ",".join(map(str, seeds)), *([] if root == "./data" else ["--root", root])]
        # Overrides that every run has, and the sweep's file has not, were on the sweep's command line.
        pairs = [[*itertools.pairwise(map(str, run.record.get("command", ())))] for run in self.data.runs]
        common = [pair for pair in pairs[0] if all(pair in others for others in pairs)]
        overrides = [pair for pair in common if CONFIG_KEY.fullmatch(pair[0]) and pair[0] not in text]
        return shlex.join([*words, *itertools.chain(*overrides)])


def to_uri(content: bytes, media_type: str) -> str:
    """Return a data URI, which a link downloads without a request."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
