"""Tables of generalisation, for ``tools/results_table.py``: accuracy on classes and data sets without training.

From base to new classes, with the harmonic mean H of the two accuracies. H is that of the means over seeds; the
average's H is that of the means over data sets (CoCoOp, Zhou et al., CVPR 2022, table 1):

    <folder>/train_base/<data set>/shots_<shots>/<trainer>/<config>/seed<n>     trained and tested on the base classes
    <folder>/test_base/…                                                        the same for methods without training
    <folder>/test_new/…                                                         tested on the new classes

From ImageNet to its variants and to other data sets (tables 3 and 2 of the same paper):

    <folder>/../imagenet/<trainer>/<config>_<shots>shots[/nctx…]/seed<n>        trained and tested on ImageNet
    <folder>/<trainer>/<config>_<shots>shots[/nctx…]/<data set>/seed<n>         tested on another data set

The folders name the rows and columns. Results, seeds and settings are those of the records (``result.json``). An
average over data sets needs results on all of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import harmonic_mean, mean
from typing import Any

from dassl.utils import file_digest
from studies.tables.cells import (
    OTHER,
    SHORTCUT,
    Cell,
    build_cell,
    check_any_result,
    format_notes,
    format_shots,
    list_missing,
    mark_cells,
    select_tested,
)
from studies.tables.runs import Run, find_runs

# A run's folder below the table's folder: of base-to-new runs, and of runs on other data sets than they trained on.
SEED_SUFFIX = r"(?:/seed[^/]*)?"
BASE_TO_NEW = re.compile(
    r"(?P<stage>train_base|test_base|test_new)/(?P<data>[^/]+)/(?P<method>shots_\d+/[^/]+/[^/]+)" + SEED_SUFFIX
)
TRANSFER = re.compile(
    r"(?P<method>[^/]+/[^/]+_\d+shots[^/]*(?:/nctx[^/]*)?)/(?P<data>(?!seed|nctx)[^/]+)" + SEED_SUFFIX
)
SOURCE = re.compile(r"(?P<method>[^/]+/[^/]+_\d+shots[^/]*(?:/nctx[^/]*)?)" + SEED_SUFFIX)  # in SOURCE_DATASET
SHOTS_PATTERN = re.compile(r"shots_(\d+)/|_(\d+)shots")  # in a method's path, as each of the two patterns has it
SOURCE_DATASET = "imagenet"  # where transferred models were trained; the prefix of its variants, such as imagenetv2

Source = tuple[tuple[str, ...], Run]  # a run that trains, and the components of its path below the outputs' folder
Page = tuple[str, str, Any]  # a table as the stem of its file names, its Markdown, and its pandas.DataFrame


@dataclass
class FolderRuns:
    """The runs in the folders that a pattern matches.

    Attributes:
        runs: the finished runs with an accuracy on test images, each with its match.
        matches: the matches of all runs, also of unfinished ones.
        notes: a sentence for each run that is not in the table.
        missing: the reason by the folder of each missing run.
    """

    runs: list[tuple[re.Match, Run]]
    matches: list[re.Match]
    notes: list[str]
    missing: dict[Path, str]

    def select(self, **groups: object) -> list[Run]:
        """Return the runs whose match has these values in its groups."""
        return [run for match, run in self.runs if all(match[name] == value for name, value in groups.items())]


def read_table(folder: Path) -> Page | None:
    """Return the base-to-new or the transfer table of the runs in ``folder``; None if their paths fit neither.

    Raises:
        UserError: paths fit, but no run is finished.
    """
    for pattern, build in ((BASE_TO_NEW, build_base_to_new), (TRANSFER, build_transfer)):
        folder_runs = read_folder(folder, pattern)
        if folder_runs.matches:
            return build(folder, folder_runs)
    return None


def read_folder(folder: Path, pattern: re.Pattern) -> FolderRuns:
    """Return the runs in ``folder`` whose paths below it match ``pattern``."""
    runs, unfinished = find_runs(folder)
    paths = (*(run.folder for run in runs), *unfinished)
    matches = {path: match for path in paths if (match := pattern.fullmatch(path.relative_to(folder).as_posix()))}
    tested, notes = select_tested(run for run in runs if run.folder in matches)
    notes += [f"{run.folder}: its folder is not one of this table" for run in runs if run.folder not in matches]
    missing = list_missing(folder, runs, unfinished)
    return FolderRuns([(matches[run.folder], run) for run in tested], [*matches.values()], notes, missing)


def build_base_to_new(folder: Path, folder_runs: FolderRuns) -> Page:
    """Return a table with the accuracy on base and new classes and their harmonic mean H, in percent.

    It has a row for each data set and method; with several data sets, then one for each method's averages.
    """
    import pandas as pd

    datasets, methods = _list_datasets_and_methods(folder_runs)
    cells, notes = {}, []
    for data, method in product(datasets, methods):
        select = partial(folder_runs.select, data=data, method=method)
        shots = _get_shots(method)
        base, trained = _build_cell([*select(stage="train_base"), *select(stage="test_base")], "base", shots)
        sources = [(run.folder.relative_to(folder).parts, run) for run in trained]
        new, _ = _build_cell(select(stage="test_new"), "new", shots, sources)
        new.shortcuts |= base.shortcuts  # the tested model was trained with them
        cells[data, method, "base"], cells[data, method, "new"] = base, new
    named = {f"{data}, {_format_method(method)}, {half}": cell for (data, method, half), cell in cells.items()}
    for place in product(datasets, ("base", "new")):
        group = {f"{place[0]}, {_format_method(m)}, {place[1]}": cells[place[0], m, place[1]] for m in methods}
        notes += mark_cells(group, f"{place[0]}, {place[1]} classes")
    rows = []
    for data, method in product(datasets, methods):
        base, new = cells[data, method, "base"], cells[data, method, "new"]
        rows.append((data, _format_method(method), base, new, _combine_cells(harmonic_mean, (base, new))))
    for method in methods if len(datasets) > 1 else ():
        base, new = (_combine_cells(mean, [cells[data, method, name] for data in datasets]) for name in ("base", "new"))
        rows.append(("average", _format_method(method), base, new, _combine_cells(harmonic_mean, (base, new))))
    frame = pd.DataFrame(rows, columns=["data set", "method", "base", "new", "H"]).astype(str).set_index("data set")
    below = _format_below(folder, named, notes, folder_runs.notes, folder_runs.missing)
    return "base_to_new", _format_page({"From base to new classes: accuracy (%)": frame}, below, left=2), frame


def build_transfer(folder: Path, folder_runs: FolderRuns) -> Page:
    """Return a table with a row for each method and columns for ImageNet, its variants and the other data sets.

    The variants and the other data sets each have a column of averages.
    """
    import pandas as pd

    datasets, methods = _list_datasets_and_methods(folder_runs)
    groups = {
        "variants": [data for data in datasets if data.startswith(SOURCE_DATASET) and data != SOURCE_DATASET],
        "other data sets": [data for data in datasets if not data.startswith(SOURCE_DATASET)],
    }
    groups = {name: group for name, group in groups.items() if group}
    root = folder.absolute().parent
    source, notes, cells = read_folder(root / SOURCE_DATASET, SOURCE), [], {}
    for method in methods:
        shots = _get_shots(method)
        cells[SOURCE_DATASET, method], trained = _build_cell(source.select(method=method), "", shots)
        sources = [(run.folder.relative_to(root).parts, run) for run in trained]
        for data in datasets:
            cell, _ = _build_cell(folder_runs.select(data=data, method=method), "all", shots, sources)
            cell.shortcuts |= cells[SOURCE_DATASET, method].shortcuts  # the model was trained with them
            cells[data, method] = cell
    for data in (SOURCE_DATASET, *datasets):
        notes += mark_cells({f"{data}, {_format_method(m)}": cells[data, m] for m in methods}, data)
    columns = {SOURCE_DATASET: [cells[SOURCE_DATASET, method] for method in methods]}
    for name, group in groups.items():
        columns |= {data: [cells[data, method] for method in methods] for data in group}
        averages = [_combine_cells(mean, [cells[data, method] for data in group]) for method in methods]
        columns[f"average of {name}"] = averages
    frame = pd.DataFrame(columns, pd.Index(map(_format_method, methods), name="accuracy (%)")).astype(str)
    tables = {}
    for name, group in groups.items():
        tested = {match["method"] for match in folder_runs.matches if match["data"] in group}
        rows = [method in tested for method in methods]
        group_frame = frame.loc[rows, [SOURCE_DATASET, *group, f"average of {name}"]]
        tables[f"From {SOURCE_DATASET} to {name}: accuracy (%)"] = group_frame
    named = {f"{data}, {_format_method(method)}": cell for (data, method), cell in cells.items()}
    trained_here = {match.string for match in source.matches if match["method"] in methods}
    base = root / SOURCE_DATASET
    missing = {path: text for path, text in source.missing.items() if path.relative_to(base).as_posix() in trained_here}
    below = _format_below(folder, named, notes, folder_runs.notes, folder_runs.missing | missing)
    return "transfer", _format_page(tables, below, left=1), frame


def _build_cell(
    runs: Sequence[Run], classes: str, shots: int, sources: Sequence[Source] | None = None
) -> tuple[Cell, list[Run]]:
    """Return the cell of the ``runs`` that fit it, and these; a note names each other run and why it does not fit.

    Args:
        classes: DATASET.SUBSAMPLE_CLASSES; "" for any.
        shots: the number of shots in the name of the runs' folder; 0 for methods without training.
        sources: the runs that trained the models that ``runs`` evaluate; None: ``runs`` train their own.
    """
    fitting, notes = [], []
    for run in runs:
        subsample = run.config.get("DATASET.SUBSAMPLE_CLASSES")
        reason = ""
        if classes and subsample != classes:
            reason = f"its record has DATASET.SUBSAMPLE_CLASSES {subsample}"
        elif run.is_trained and shots and run.shots != shots and (run.shots or sources is None):
            reason = f"its record has {format_shots(run.shots) if run.shots else 'all images'}"
        elif run.is_trained and sources is not None:
            reason = _find_other_model(run, sources)
        fitting += [] if reason else [run]
        notes += [f"left out {run.folder}, as {reason}"] if reason else []
    cell = build_cell(fitting)
    cell.notes += notes
    return cell, fitting


def _find_other_model(run: Run, sources: Sequence[Source]) -> str:
    """Return why ``run`` does not evaluate the model of the source with its seed; "" if it does, or none has its seed.

    Folders may have moved since, so of the two paths, the last components are compared.
    """
    if not run.is_evaluation:
        return "it trained the model that it was tested with"
    reasons = [_compare_models(run, place, source) for place, source in sources if source.seed == run.seed]
    return reasons[0] if reasons and all(reasons) else ""  # two records of one seed: one of them


def _compare_models(run: Run, place: tuple[str, ...], source: Run) -> str:
    """Return why ``run`` does not evaluate the model of ``source``, whose path ends in ``place``; "" if it does."""
    if source.is_evaluation:
        is_same = run.model == source.model or not (run.model_files and source.model_files)
        return "" if is_same else f"it evaluates another model than {source.folder}"
    for file, sha256 in run.model_files:
        folder = Path(os.path.normpath(file)).parent.parent
        if any(one != other for one, other in zip(reversed(folder.parts), reversed(place), strict=False)):
            return f"it evaluates a model of {folder}, not of {source.folder}"
        checkpoint = source.folder.joinpath(*Path(file).parts[-2:])
        if checkpoint.is_file() and file_digest(checkpoint) != sha256:
            return f"the model of {source.folder} has changed since"
    return ""


def _list_datasets_and_methods(folder_runs: FolderRuns) -> tuple[list[str], list[str]]:
    """Return the names of the data sets and of the methods in the matched paths; methods without training first."""
    methods = {match["method"] for match in folder_runs.matches}
    ordered = sorted(methods, key=lambda m: (_get_shots(m) > 0, SHOTS_PATTERN.sub("", m), _get_shots(m)))
    return sorted({match["data"] for match in folder_runs.matches}), ordered


def _get_shots(method: str) -> int:
    """Return the number of shots in a method's path: ``shots_16/CoOp/tiny`` -> 16."""
    return int("".join(SHOTS_PATTERN.findall(method)[0]))  # one of the pattern's two groups is empty


def _format_method(method: str) -> str:
    """Return ``CoOp, tiny, 16 shots`` for ``shots_16/CoOp/tiny`` and for ``CoOp/tiny_16shots``."""
    return f"{SHOTS_PATTERN.sub('', method).replace('/', ', ')}, {format_shots(_get_shots(method))}"


def _combine_cells(function: Callable[[list[float]], float], cells: Iterable[Cell]) -> Cell:
    """Return a cell with ``function`` of the cells' means, and their marks; empty if a cell has no accuracies."""
    cells = list(cells)
    if not all(cell.accuracies for cell in cells):
        return Cell()
    marks = "".join(mark for mark in (SHORTCUT, OTHER) if any(mark in cell.marks for cell in cells))
    return Cell([function([cell.mean for cell in cells])], marks=marks)


def _format_below(
    folder: Path, cells: dict[str, Cell], notes: list[str], left_out: list[str], missing: dict
) -> list[str]:
    """Return the lines below a table; ``UserError`` if no cell has an accuracy. ``cells`` are by name."""
    check_any_result(cells.values(), folder, left_out, missing)
    return format_notes(cells, [*notes, *(f"Not in the table: {note}." for note in left_out)], missing)


def _format_page(tables: dict, below: list[str], left: int) -> str:
    """Return a Markdown page of ``tables`` (pandas.DataFrame by title), and the lines ``below``.

    The first ``left`` columns are aligned to the left.
    """
    lines = []
    for title, frame in tables.items():
        align = ["left"] * left + ["right"] * (frame.shape[1] + 1 - left)
        lines += [f"# {title}", "", frame.to_markdown(colalign=align, disable_numparse=True), ""]
    return "\n".join([*lines[:-1], *below]) + "\n"
