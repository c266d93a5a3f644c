"""The table of a few-shot study, for ``tools/results_table.py``: rows of methods, columns of shots.

The runs are those below the folder of the study, wherever they are in it. What a run is, its record says: the method,
the number of shots, the seed. Runs that differ in nothing but the seed are averaged (mean ± 95% interval, Student's t).
Where runs of one method and number of shots differ in more, each of their settings has its row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dassl.utils import UserError, suggest_name
from studies.tables.cells import (
    Cell,
    build_cell,
    check_any_result,
    format_notes,
    format_shots,
    list_missing,
    mark_cells,
    select_tested,
)
from studies.tables.paired import Comparison, compare_cells, compare_shared_seeds
from studies.tables.runs import COMPARED, Run, find_differences, find_runs

CHECKSUM = re.compile(r"SHA-256 (\w{8})\w*")  # in the values of settings
ZERO_SHOTS, ALL_IMAGES = 0, 2**31  # columns: methods that train nothing, first; methods trained on all images, last
STANDARD_TOKENS, EFFICIENT_TOKENS = 16, 4  # context tokens: CoOp's default, and the length of "a photo of a"
# CoOp's rows by (context tokens, class-specific): the two settings that the study compares.
COOP_ROWS = {
    (STANDARD_TOKENS, False): "CoOp (Standard)",
    (EFFICIENT_TOKENS, False): "CoOp (Efficient)",
}
# Groups of methods, in the order of the table, with the colour scale of each in plots; further groups come last.
GROUPS = {"training-free": "Greens", "features": "Oranges", "prompts": "Blues", "towers": "Purples"}
CHOOSING_GROUPS = ("training-free", "features")  # groups of methods that choose hyper-parameters on validation images

Table = dict[str, dict[int, Cell]]  # cells of each row by column: the shots, ZERO_SHOTS or ALL_IMAGES


@dataclass
class Study:
    """The table of a study's runs of one PROTOCOL, sentences for below it, and why each missing run is missing."""

    table: Table
    notes: list[str]
    missing: dict[Path, str]
    protocol: str = "validation"

    @property
    def cells(self) -> dict[str, Cell]:
        """All cells, by their names in notes."""
        return {f"{row}, {format_column(c)}": cell for row, cells in self.table.items() for c, cell in cells.items()}


def read_studies(folder: Path, config: str = "") -> list[Study]:
    """Return the study of the runs in ``folder`` for each PROTOCOL: with validation first, then with none.

    Methods that train nothing belong to each. With ``config``, they are the runs whose --config-file has that stem.

    Raises:
        UserError: no run is finished, or none is of ``config``.
    """
    runs, unfinished = find_runs(folder)
    if config:
        configs = sorted({run.config_name for run in runs})
        if config not in configs:
            raise UserError(f"no runs of config {config} in {folder}; {suggest_name(config, configs)}")
    missing = list_missing(folder, runs, unfinished)
    tested, notes = select_tested(run for run in runs if not config or run.config_name == config)
    evaluations = [run for run in tested if run.is_trained and run.is_evaluation]
    notes += [f"{run.folder}: it evaluates a model that another run trained" for run in evaluations]
    tested = [run for run in tested if run not in evaluations]
    protocols = {run.facts["protocol"] for run in tested if "protocol" in run.facts} or {"validation"}
    studies = []
    for protocol in sorted(protocols, reverse=True):
        table, split_notes = collect_table([run for run in tested if run.facts.get("protocol", protocol) == protocol])
        studies.append(study := Study(table, [], missing, protocol))
        study.notes += [*_describe_choice(study), *mark_cells(study.cells), *split_notes, *_describe_columns(table)]
        study.notes += [f"Not in the table: {note}." for note in notes]
    check_any_result((cell for study in studies for cell in study.cells.values()), folder, notes, missing)
    return studies


def collect_table(runs: Sequence[Run]) -> tuple[Table, list[str]]:
    """Return the cells of ``runs`` by row and column, and a note on each method that has several rows."""
    methods: dict[str, list[Run]] = {}
    names = {run.record["trainer"]: run.method for run in runs if "method" in run.record}  # also those of old records
    for run in sorted(runs, key=_sort_key):
        methods.setdefault(name_method(run, names), []).append(run)
    table, notes = {}, []
    for method, group in methods.items():
        keys = sorted({key for column in _group_by_column(group).values() for key in find_differences(column)})
        if keys:
            notes.append(f"{method} has several rows, as runs with the same shots differ in {', '.join(keys)}.")
        for suffix, row_runs in _split(group, keys).items():
            table[method + suffix] = {c: build_cell(column) for c, column in _group_by_column(row_runs).items()}
    return table, notes


def name_method(run: Run, names: Mapping[str, str]) -> str:
    """Return the name of a run's method, by trainer in ``names``, with the context of CoOp: ``CoOp, 8 tokens, CSC``."""
    trainer, node = run.record["trainer"], "TRAINER.COOP"
    if trainer != "CoOp":
        return names.get(trainer, run.method)
    words, n_ctx, csc = (run.config.get(f"{node}.{key}") for key in ("CTX_INIT", "N_CTX", "CSC"))
    position = run.config.get(f"{node}.CLASS_TOKEN_POSITION", "end")
    tokens = f'"{words}"' if words else f"{n_ctx} token{'s' * (n_ctx != 1)}"
    name = f"CoOp, {tokens}{', CSC' * bool(csc)}"
    if not words and isinstance(n_ctx, int):
        name = COOP_ROWS.get((n_ctx, bool(csc)), name)
    return name if position == "end" else f"{name}, class name {position}"


def _sort_key(run: Run) -> tuple:
    """Return what sorts runs: by group, what trains nothing first, then by name.

    Of CoOp's, the two of the study come first.
    """
    groups, rows, name = list(GROUPS), list(COOP_ROWS.values()), name_method(run, {})
    place = groups.index(run.group) if run.group in groups else len(groups) + (not run.group)
    method = place, run.group, run.is_trained, run.method.casefold()
    coop, n_ctx = rows.index(name) if name in rows else len(rows), run.config.get("TRAINER.COOP.N_CTX")
    return *method, coop, "CSC" in name, n_ctx if isinstance(n_ctx, int) else 0, name, str(run.folder)


def _get_column(run: Run) -> int:
    """Return the column of a run."""
    return (run.shots or ALL_IMAGES) if run.is_trained else ZERO_SHOTS


def _group_by_column(runs: Iterable[Run]) -> dict[int, list[Run]]:
    """Return the runs by column."""
    columns: dict[int, list[Run]] = {}
    for run in sorted(runs, key=_get_column):
        columns.setdefault(_get_column(run), []).append(run)
    return columns


def _split(runs: Sequence[Run], keys: Sequence[str]) -> dict[str, list[Run]]:
    """Return the runs by the values of ``keys``, as text such as ``, OPTIM.LR 0.02``, in the order of these values.

    A key that follows from the keys before it is left out of the text. Of a checksum, the text has 8 digits.
    """
    differences = find_differences(runs)
    order = sorted(range(len(runs)), key=lambda i: [_value_key(differences[key][i]) for key in keys])
    runs = [runs[i] for i in order]
    differences = {key: [differences[key][i] for i in order] for key in keys}
    groups = [""] * len(runs)
    for key in keys:
        values = [CHECKSUM.sub(r"\1", value) for value in differences[key]]
        finer = [f"{group}, {key} {value}" for group, value in zip(groups, values, strict=True)]
        groups = finer if len(set(finer)) > len(set(groups)) else groups
    return {
        group: [r for r, other in zip(runs, groups, strict=True) if other == group] for group in dict.fromkeys(groups)
    }


def _value_key(text: str) -> tuple[bool, float, str]:
    """Return what sorts the values of a setting: numbers by their size, then other texts."""
    try:
        return False, float(text), text
    except ValueError:
        return True, 0, text


def _describe_columns(table: Table) -> list[str]:
    """Return a sentence for each row whose columns differ in more than the shots, such as in the number of epochs."""
    notes = []
    for row, cells in table.items():
        runs = [run for cell in cells.values() for run in cell.runs]
        for key, values in find_differences(runs).items():
            if key in (*COMPARED, "DATASET.NUM_SHOTS"):
                continue
            columns = {
                v: dict.fromkeys(format_column(_get_column(r)) for r, w in zip(runs, values, strict=True) if w == v)
                for v in values
            }
            parts = "; ".join(f"{value} ({', '.join(names)})" for value, names in columns.items())
            notes.append(f"{row}: {key} differs between the columns: {parts}.")
    return notes


def _describe_choice(study: Study) -> list[str]:
    """Return a sentence on the study's PROTOCOL, if it has a method that chooses hyper-parameters or epochs by it."""
    runs = [run for cell in study.cells.values() for run in cell.runs if run.is_trained]
    chooses = any(run.group in CHOOSING_GROUPS or run.config.get("TEST.FINAL_MODEL") == "best_val" for run in runs)
    note = "PROTOCOL validation: what a method chooses, it chooses on few-shot validation images."
    return [note] if chooses and study.protocol == "validation" else []


def get_group(cells: Mapping[int, Cell]) -> str:
    """Return the group of a row, as its header: ``features``; ``other`` if its runs name none."""
    return next((cell.group for cell in cells.values() if cell.group), "other")


def format_column(column: int) -> str:
    """Return the head of a column: ``0 shots``, ``1 shot``, ``16 shots``, ``all``."""
    return "all" if column == ALL_IMAGES else format_shots(column)


def to_frame(table: Table):
    """Return the table as a pandas.DataFrame of text: rows of methods, columns of shots and of parameters."""
    import pandas as pd

    columns = sorted({column for cells in table.values() for column in cells})
    texts = [[*(str(c.get(column, "-")) for column in columns), format_parameters(c.values())] for c in table.values()]
    heads = [*map(format_column, columns), "parameters"]
    return pd.DataFrame(texts, pd.Index(table, name="accuracy (%)"), heads)


def format_parameters(cells: Iterable[Cell]) -> str:
    """Return a row's number of trainable parameters: ``2,048``; ``640 to 10,240`` if it varies; ``-`` if unknown."""
    counts = set().union(*(cell.parameters for cell in cells))
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)})) if counts else "-"


def format_comparison(table: Table, first: str, second: str) -> str:
    """Return sentences on whether the row ``first`` is more accurate than the row ``second``, over all shots."""
    one, other = table[first], table[second]
    both = [column for column in one if column in other and one[column].accuracies and other[column].accuracies]
    gaps = {format_column(column): compare_shared_seeds(one[column], other[column]) for column in both}
    texts = [f"{name} {gap:+.2f}" for name, gap in gaps.items() if gap is not None]
    shots = f" By shots: {', '.join(texts)}." if texts else ""
    result = compare_cells(one, other)
    if not isinstance(result, Comparison):
        return f"Whether {first} or {second} is more accurate cannot be told: {result}.{shots}"
    if not result.is_shown:
        return f"No difference in accuracy between {first} and {second} can be shown: {result}.{shots}"
    verdict = "higher" if result.difference > 0 else "lower"
    return f"The accuracy of {first} is {verdict} than that of {second}: {result}.{shots}"


def format_coop_comparison(table: Table) -> list[str]:
    """Return a paragraph that compares CoOp with 4 tokens to CoOp with 16; none if a row is missing."""
    standard, efficient = COOP_ROWS.values()
    if standard not in table or efficient not in table:
        return []
    saving = 100 * (1 - EFFICIENT_TOKENS / STANDARD_TOKENS)
    tokens = f"{efficient} learns {EFFICIENT_TOKENS} context tokens instead of {STANDARD_TOKENS}"
    text = f"{tokens}: {saving:.0f}% fewer parameters. {format_comparison(table, efficient, standard)}"
    pairs = [(cell, table[standard][column]) for column, cell in table[efficient].items() if column in table[standard]]
    keys = {key for cells in pairs for key in find_differences([run for cell in cells for run in cell.runs])}
    if others := sorted(keys - {"TRAINER.COOP.N_CTX", *COMPARED}):
        text += f" They also differ in {', '.join(others)}."
    return ["", text]


def to_markdown(study: Study, title: str) -> str:
    """Return a Markdown page: the title, the table, the comparison of CoOp's two settings, and the notes.

    With several groups, each has a header row.
    """
    import pandas as pd

    frame = to_frame(study.table)
    groups = [get_group(cells) for cells in study.table.values()]
    if len(set(groups)) > 1:
        name, parts = frame.index.name, frame.groupby(groups, sort=False)
        heads = [(pd.DataFrame("", [f"**{group}**"], frame.columns), rows) for group, rows in parts]
        frame = pd.concat([part for pair in heads for part in pair]).rename_axis(name)
    align = ["left"] + ["right"] * frame.shape[1]
    lines = [f"# {title}", "", frame.to_markdown(colalign=align, disable_numparse=True)]
    lines += [*format_coop_comparison(study.table), *format_notes(study.cells, study.notes, study.missing)]
    return "\n".join(lines) + "\n"
