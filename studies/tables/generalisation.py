"""Tables of generalisation, for ``tools/results_table.py``: what a method gives beyond what it was trained on.

From base to new classes, with the harmonic mean H of the two accuracies (of their means over seeds; in the average, of
the means over data sets, as in CoCoOp, Zhou et al., CVPR 2022, table 1):

    <folder>/train_base/<data set>/shots_<shots>/<trainer>/<config>/seed<n>     trained, and tested on the base classes
    <folder>/test_base/…                                                        instead of it, where nothing is trained
    <folder>/test_new/…                                                         tested on the new classes

From ImageNet to its variants and to other data sets (tables 3 and 2):

    <folder>/../imagenet/<trainer>/<config>_<shots>shots[/nctx…]/seed<n>        trained, and tested on ImageNet
    <folder>/<trainer>/<config>_<shots>shots[/nctx…]/<data set>/seed<n>         tested elsewhere

Folders ``seed<n>`` are averaged. An average over data sets is there once all of them are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from statistics import harmonic_mean, mean

from dassl.utils import UserError
from studies.tables.cells import Cell, format_notes, format_shots, list_runs, read_cell

SEED_SUFFIX = r"(?:/(?P<seed>seed[^/]*))?/log\.txt"
BASE_TO_NEW = re.compile(
    r"(?P<part>train_base|test_base|test_new)/(?P<data>[^/]+)/(?P<method>shots_\d+/[^/]+/[^/]+)" + SEED_SUFFIX
)
TRANSFER = re.compile(
    r"(?P<method>[^/]+/[^/]+_\d+shots[^/]*(?:/nctx[^/]*)?)/(?P<data>(?!seed|nctx)[^/]+)" + SEED_SUFFIX
)
SHOTS_PATTERN = re.compile(r"shots_(\d+)/|_(\d+)shots")  # in the path of a method
SOURCE_DATASET = "imagenet"  # what is transferred was learned there; its variants are called imagenetv2, imagenet_a, …


def read_table(folder: Path):
    """The table of the runs in ``folder``: its name, as Markdown, as a data frame; None if they are of another kind.

    Raises:
        UserError: none of the runs is finished.
    """
    logs = [path.relative_to(folder).as_posix() for path in folder.rglob("log.txt")]
    for pattern, table in ((BASE_TO_NEW, build_base_to_new), (TRANSFER, build_transfer)):
        if found := [match for match in map(pattern.fullmatch, logs) if match]:
            return table(folder, found)
    return None


def build_base_to_new(folder: Path, found: list[re.Match]):
    """A row for every method on every data set, and for its averages over them."""
    import pandas as pd

    datasets, methods = _datasets_and_methods(found)
    cells, rows = {}, []
    for data, method in product(datasets, methods):
        runs = [Path(data, method, seed) for seed in methods[method]]
        settings = _expected_config(method)
        part = "train_base" if settings else "test_base"
        base_settings = {**settings, "DATASET.SUBSAMPLE_CLASSES": "base"}
        base = read_cell([folder / part / run for run in runs], base_settings, trained=bool(settings))
        settings = {"DATASET.SUBSAMPLE_CLASSES": "new"}
        new = read_cell([folder / "test_new" / run for run in runs], settings, trained=False)
        new.shortcuts |= base.shortcuts  # the model that is tested took them in its training
        cells[data, method, "base"], cells[data, method, "new"] = base, new
        rows.append((data, _format_method(method), base, new, _combine_cells(harmonic_mean, (base, new))))
    for method in methods if len(datasets) > 1 else ():
        averages = [_combine_cells(mean, [cells[data, method, name] for data in datasets]) for name in ("base", "new")]
        rows.append(("average", _format_method(method), *averages, _combine_cells(harmonic_mean, averages)))
    frame = pd.DataFrame(rows, columns=["data set", "method", "base", "new", "H"]).astype(str).set_index("data set")
    named = {f"{data}, {_format_method(method)}, {name}": cell for (data, method, name), cell in cells.items()}
    return "base_to_new", _format_page(folder, {"From base to new classes: accuracy (%)": frame}, named, left=2), frame


def build_transfer(folder: Path, found: list[re.Match]):
    """Rows of methods, columns of data sets: ImageNet, its variants and their average, the others and theirs."""
    import pandas as pd

    datasets, methods = _datasets_and_methods(found)
    groups = {
        "variants": [data for data in datasets if data.startswith(SOURCE_DATASET) and data != SOURCE_DATASET],
        "other data sets": [data for data in datasets if not data.startswith(SOURCE_DATASET)],
    }
    groups = {name: group for name, group in groups.items() if group}
    tested = {name: {match["method"] for match in found if match["data"] in group} for name, group in groups.items()}
    cells = {(SOURCE_DATASET, method): _read_source_cell(folder, method) for method in methods}
    columns = {SOURCE_DATASET: [cells[SOURCE_DATASET, method] for method in methods]}
    for name, group in groups.items():
        for data, method in product(group, methods):
            runs = [folder / method / data / seed for seed in methods[method] if method in tested[name]]
            cells[data, method] = read_cell(runs, {"DATASET.SUBSAMPLE_CLASSES": "all"}, trained=False)
            cells[data, method].shortcuts |= cells[SOURCE_DATASET, method].shortcuts  # taken in the training
        columns |= {data: [cells[data, method] for method in methods] for data in group}
        columns[f"average of {name}"] = [
            _combine_cells(mean, [cells[data, method] for data in group]) for method in methods
        ]
    frame = pd.DataFrame(columns, pd.Index(map(_format_method, methods), name="accuracy (%)")).astype(str)
    tables = {}
    for name, group in groups.items():
        rows = [method in tested[name] for method in methods]
        tables[f"From {SOURCE_DATASET} to {name}: accuracy (%)"] = frame.loc[
            rows, [SOURCE_DATASET, *group, f"average of {name}"]
        ]
    named = {f"{data}, {_format_method(method)}": cell for (data, method), cell in cells.items()}
    return "transfer", _format_page(folder, tables, named, left=1), frame


def _read_source_cell(folder: Path, method: str) -> Cell:
    """What the method gave where it was trained, beside the folder of the tests; empty if that is not there."""
    runs = folder.absolute().parent / SOURCE_DATASET / method
    settings = _expected_config(method)
    return read_cell(list_runs(runs) if runs.is_dir() else [], settings, trained=bool(settings))


def _datasets_and_methods(found: list[re.Match]) -> tuple[list[str], dict[str, list[str]]]:
    """The data sets, and the methods with the folders of their seeds; methods that are not trained come first."""
    datasets = sorted({match["data"] for match in found})
    methods = sorted(
        {match["method"] for match in found}, key=lambda m: (_get_shots(m) > 0, SHOTS_PATTERN.sub("", m), _get_shots(m))
    )
    seeds = {m: {match["seed"] for match in found if match["method"] == m} for m in methods}
    return datasets, {m: sorted(filter(None, seeds[m])) or [""] for m in methods}


def _get_shots(method: str) -> int:
    return int(next(filter(None, SHOTS_PATTERN.search(method).groups())))


def _expected_config(method: str) -> dict:
    """What the record of its training shows; of 0 shots there is no training."""
    shots = _get_shots(method)
    return {"DATASET.NUM_SHOTS": shots} if shots else {}


def _format_method(method: str) -> str:
    """``shots_16/CoOp/tiny`` and ``CoOp/tiny_16shots`` are both called "CoOp, tiny, 16 shots"."""
    return f"{SHOTS_PATTERN.sub('', method).replace('/', ', ')}, {format_shots(_get_shots(method))}"


def _combine_cells(function: Callable[[list[float]], float], cells: Iterable[Cell]) -> Cell:
    """A function of the cells' means, as a cell; empty unless all of them are there."""
    cells = list(cells)
    if not all(cell.accuracies for cell in cells):
        return Cell()
    return Cell([function([cell.mean for cell in cells])], shortcuts=set().union(*(c.shortcuts for c in cells)))


def _format_page(folder: Path, tables: dict, cells: dict[str, Cell], left: int) -> str:
    """Title and table each, then the notes; the first ``left`` columns are aligned to the left."""
    if not any(cell.accuracies for cell in cells.values()):
        raise UserError(f"no finished run in {folder}; {next(why for cell in cells.values() for why in cell.missing)}")
    lines = []
    for title, frame in tables.items():
        align = ["left"] * left + ["right"] * (frame.shape[1] + 1 - left)
        lines += [f"# {title}", "", frame.to_markdown(colalign=align, disable_numparse=True), ""]
    return "\n".join([*lines[:-1], *format_notes(cells)]) + "\n"
