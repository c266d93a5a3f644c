"""Tables of generalisation, for ``tools/results_table.py``: accuracy on classes and data sets without training.

From base to new classes, with the harmonic mean H of the two accuracies. H is that of the means over seeds; the
average's H is that of the means over data sets (CoCoOp, Zhou et al., CVPR 2022, table 1):

    <folder>/train_base/<data set>/shots_<shots>/<trainer>/<config>/seed<n>     trained and tested on the base classes
    <folder>/test_base/…                                                        the same for methods without training
    <folder>/test_new/…                                                         tested on the new classes

From ImageNet to its variants and to other data sets (tables 3 and 2 of the same paper):

    <folder>/../imagenet/<trainer>/<config>_<shots>shots[/nctx…]/seed<n>        trained and tested on ImageNet
    <folder>/<trainer>/<config>_<shots>shots[/nctx…]/<data set>/seed<n>         tested on another data set

Folders ``seed<n>`` are averaged. An average over data sets needs results on all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from statistics import harmonic_mean, mean
from typing import Any

from dassl.utils import UserError
from studies.tables.cells import Cell, format_notes, format_shots, list_runs, read_cell

# A run's log below the table's folder: of base-to-new runs, and of runs on other data sets than they trained on.
SEED_SUFFIX = r"(?:/(?P<seed>seed[^/]*))?/log\.txt"
BASE_TO_NEW = re.compile(
    r"(?:train_base|test_base|test_new)/(?P<data>[^/]+)/(?P<method>shots_\d+/[^/]+/[^/]+)" + SEED_SUFFIX
)
TRANSFER = re.compile(
    r"(?P<method>[^/]+/[^/]+_\d+shots[^/]*(?:/nctx[^/]*)?)/(?P<data>(?!seed|nctx)[^/]+)" + SEED_SUFFIX
)
SHOTS_PATTERN = re.compile(r"shots_(\d+)/|_(\d+)shots")  # in a method's path, as each of the two patterns has it
SOURCE_DATASET = "imagenet"  # where transferred models were trained; the prefix of its variants, such as imagenetv2

Page = tuple[str, str, Any]  # a table as the stem of its file names, its Markdown, and its pandas.DataFrame


def read_table(folder: Path) -> Page | None:
    """Return the base-to-new or the transfer table of the runs in ``folder``; None if their paths fit neither.

    Raises:
        UserError: paths fit, but no run is finished.
    """
    logs = [path.relative_to(folder).as_posix() for path in folder.rglob("log.txt")]
    for pattern, build in ((BASE_TO_NEW, build_base_to_new), (TRANSFER, build_transfer)):
        if matches := [match for match in map(pattern.fullmatch, logs) if match]:
            return build(folder, matches)
    return None


def build_base_to_new(folder: Path, matches: list[re.Match]) -> Page:
    """Return a table with the accuracy on base and new classes and their harmonic mean H, in percent.

    It has a row for each data set and method; with several data sets, then one for each method's averages.
    ``matches`` has a match of BASE_TO_NEW for each log in ``folder``.
    """
    import pandas as pd

    datasets, methods = _list_datasets_and_methods(matches)
    cells, rows = {}, []
    for data, method in product(datasets, methods):
        runs = [Path(data, method, seed) for seed in methods[method]]
        config = _expected_config(method)
        stage = "train_base" if config else "test_base"
        base_config = {**config, "DATASET.SUBSAMPLE_CLASSES": "base"}
        base = read_cell([folder / stage / run for run in runs], base_config, trained=bool(config))
        new_config = {"DATASET.SUBSAMPLE_CLASSES": "new"}
        new = read_cell([folder / "test_new" / run for run in runs], new_config, trained=False)
        new.shortcuts |= base.shortcuts  # the tested model was trained with them
        cells[data, method, "base"], cells[data, method, "new"] = base, new
        rows.append((data, _format_method(method), base, new, _combine_cells(harmonic_mean, (base, new))))
    for method in methods if len(datasets) > 1 else ():
        base, new = (_combine_cells(mean, [cells[data, method, name] for data in datasets]) for name in ("base", "new"))
        rows.append(("average", _format_method(method), base, new, _combine_cells(harmonic_mean, (base, new))))
    frame = pd.DataFrame(rows, columns=["data set", "method", "base", "new", "H"]).astype(str).set_index("data set")
    named = {f"{data}, {_format_method(method)}, {name}": cell for (data, method, name), cell in cells.items()}
    return "base_to_new", _format_page(folder, {"From base to new classes: accuracy (%)": frame}, named, left=2), frame


def build_transfer(folder: Path, matches: list[re.Match]) -> Page:
    """Return a table with a row for each method and columns for ImageNet, its variants and the other data sets.

    The variants and the other data sets each have a column of averages. ``matches`` has a match of TRANSFER for each
    log in ``folder``.
    """
    import pandas as pd

    datasets, methods = _list_datasets_and_methods(matches)
    groups = {
        "variants": [data for data in datasets if data.startswith(SOURCE_DATASET) and data != SOURCE_DATASET],
        "other data sets": [data for data in datasets if not data.startswith(SOURCE_DATASET)],
    }
    groups = {name: group for name, group in groups.items() if group}
    tested = {name: {match["method"] for match in matches if match["data"] in group} for name, group in groups.items()}
    cells = {(SOURCE_DATASET, method): _read_source_cell(folder, method) for method in methods}
    columns = {SOURCE_DATASET: [cells[SOURCE_DATASET, method] for method in methods]}
    for name, group in groups.items():
        for data, method in product(group, methods):
            runs = [folder / method / data / seed for seed in methods[method] if method in tested[name]]
            cells[data, method] = read_cell(runs, {"DATASET.SUBSAMPLE_CLASSES": "all"}, trained=False)
            cells[data, method].shortcuts |= cells[SOURCE_DATASET, method].shortcuts  # the model was trained with them
        columns |= {data: [cells[data, method] for method in methods] for data in group}
        averages = [_combine_cells(mean, [cells[data, method] for data in group]) for method in methods]
        columns[f"average of {name}"] = averages
    frame = pd.DataFrame(columns, pd.Index(map(_format_method, methods), name="accuracy (%)")).astype(str)
    tables = {}
    for name, group in groups.items():
        rows = [method in tested[name] for method in methods]
        group_frame = frame.loc[rows, [SOURCE_DATASET, *group, f"average of {name}"]]
        tables[f"From {SOURCE_DATASET} to {name}: accuracy (%)"] = group_frame
    named = {f"{data}, {_format_method(method)}": cell for (data, method), cell in cells.items()}
    return "transfer", _format_page(folder, tables, named, left=1), frame


def _read_source_cell(folder: Path, method: str) -> Cell:
    """Return the cell of a method's training runs, in the folder ``imagenet`` beside ``folder``; empty without them."""
    runs = folder.absolute().parent / SOURCE_DATASET / method
    config = _expected_config(method)
    return read_cell(list_runs(runs) if runs.is_dir() else [], config, trained=bool(config))


def _list_datasets_and_methods(matches: list[re.Match]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names of the data sets in the matched paths, and the names of the seed folders by method path.

    Methods without training come first. A method without seed folders has one empty name.
    """
    datasets = sorted({match["data"] for match in matches})
    methods = {match["method"] for match in matches}
    ordered = sorted(methods, key=lambda m: (_get_shots(m) > 0, SHOTS_PATTERN.sub("", m), _get_shots(m)))
    seeds = {m: {match["seed"] for match in matches if match["method"] == m} for m in ordered}
    return datasets, {m: sorted(filter(None, seeds[m])) or [""] for m in ordered}


def _get_shots(method: str) -> int:
    """Return the number of shots in a method's path: ``shots_16/CoOp/tiny`` -> 16."""
    return int("".join(SHOTS_PATTERN.findall(method)[0]))  # one of the pattern's two groups is empty


def _expected_config(method: str) -> dict:
    """Return the config values that records of a method's training runs must have; empty for 0 shots, no training."""
    shots = _get_shots(method)
    return {"DATASET.NUM_SHOTS": shots} if shots else {}


def _format_method(method: str) -> str:
    """Return a method's name: "CoOp, tiny, 16 shots" for ``shots_16/CoOp/tiny`` and for ``CoOp/tiny_16shots``."""
    return f"{SHOTS_PATTERN.sub('', method).replace('/', ', ')}, {format_shots(_get_shots(method))}"


def _combine_cells(function: Callable[[list[float]], float], cells: Iterable[Cell]) -> Cell:
    """Return a cell with ``function`` of the cells' means; empty if a cell has no accuracies."""
    cells = list(cells)
    if not all(cell.accuracies for cell in cells):
        return Cell()
    return Cell([function([cell.mean for cell in cells])], shortcuts=set().union(*(c.shortcuts for c in cells)))


def _format_page(folder: Path, tables: dict, cells: dict[str, Cell], left: int) -> str:
    """Return a Markdown page of ``tables`` (pandas.DataFrame by title) and the notes of their cells (by name).

    The first ``left`` columns are aligned to the left. :class:`UserError`: no cell has an accuracy.
    """
    if not any(cell.accuracies for cell in cells.values()):
        reasons = (reason for cell in cells.values() for reason in cell.missing)
        raise UserError(f"no finished run in {folder}; {next(reasons)}")
    lines = []
    for title, frame in tables.items():
        align = ["left"] * left + ["right"] * (frame.shape[1] + 1 - left)
        lines += [f"# {title}", "", frame.to_markdown(colalign=align, disable_numparse=True), ""]
    return "\n".join([*lines[:-1], *format_notes(cells)]) + "\n"
