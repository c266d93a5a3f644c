"""What the report shows of a study beside its table: the best methods, learning curves, and where results are from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path

import numpy as np

from dassl.data.decoding import ORIGINAL
from dassl.engine.record import RECORD_FILE
from dassl.utils import UserError
from dassl.utils.images import Decoding
from dassl.utils.logger import LOG_FILE
from studies.tables.cells import OTHER, Cell
from studies.tables.paired import Comparison, compare_cells
from studies.tables.predictions import Predictions, read_predictions
from studies.tables.runs import Run
from studies.tables.study import ZERO_SHOTS, Study

MAX_EPOCHS = 100  # points of a learning curve, which are as many as a plot of that width shows
# A line of a training log, with the mean loss of the epoch so far, and the learning rate.
EPOCH_LINE = re.compile(r"^epoch \[(\d+)/\d+\] batch .*?\bloss \S+ \((\S+)\).*\blr (\S+)", re.MULTILINE)


@dataclass
class Best:
    """The most accurate method at a number of shots, and how the others compare with it.

    ``above`` are the methods that it is shown to be more accurate than, ``equal`` those of which no difference can be
    shown, ``unknown`` the reason for each where it cannot be told.
    """

    method: str
    cell: Cell
    above: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """The learning curve of a run: epochs (from 1), and the mean loss and the last learning rate of each."""

    epochs: list[int]
    losses: list[float]
    rates: list[float]


@dataclass
class StudyData:
    """A study with all that is read of its runs; ``folder`` is that of the study."""

    folder: Path
    study: Study

    @cached_property
    def runs(self) -> list[Run]:
        """The runs of all cells."""
        return [run for cell in self.study.cells.values() for run in cell.runs]

    @cached_property
    def columns(self) -> list[int]:
        """The numbers of shots for which a trained method has a result."""
        cells = (item for cells in self.study.table.values() for item in cells.items())
        return sorted({column for column, cell in cells if cell.accuracies and column != ZERO_SHOTS})

    @cached_property
    def column(self) -> int:
        """The number of shots that the most methods have, of several the most shots; ZERO_SHOTS if nothing trains."""
        counts = Counter(c for cells in self.study.table.values() for c in self.columns if self._has_result(cells, c))
        return max(counts, key=lambda column: (counts[column], column), default=ZERO_SHOTS)

    @staticmethod
    def _has_result(cells: dict[int, Cell], column: int) -> bool:
        """Return whether the column has an accuracy."""
        return column in cells and bool(cells[column].accuracies)

    @cached_property
    def zero_shot(self) -> str | None:
        """The row of zero-shot CLIP: of the methods that train nothing, the first; None without one."""
        rows = (row for row, cells in self.study.table.items() if self._has_result(cells, ZERO_SHOTS))
        return next(rows, None)

    @cached_property
    def classes(self) -> list[str]:
        """The class names of most runs."""
        names = Counter(tuple(map(str, run.record.get("classnames", ()))) for run in self.runs)
        return [*names.most_common(1)[0][0]]

    @property
    def protocol(self) -> str:
        """The study's PROTOCOL."""
        return self.study.protocol

    def select(self, row: str, column: int | None) -> dict[int, Cell]:
        """Return a row's cell in ``column`` (None: all), by its column; what trains nothing has one for any."""
        cells = {c: cell for c, cell in self.study.table[row].items() if cell.accuracies}
        return {c: cell for c, cell in cells.items() if column in (c, None) or c == ZERO_SHOTS}

    def get_cell(self, row: str, column: int) -> Cell | None:
        """Return the cell of a row at a number of shots, if it has an accuracy; see :meth:`select`."""
        return next(iter(self.select(row, column).values()), None)

    def list_cells(self, column: int, is_compared: bool = True) -> dict[str, Cell]:
        """Return the cells of all rows at a number of shots; with ``is_compared``, those without the mark OTHER."""
        cells = {row: cell for row in self.study.table if (cell := self.get_cell(row, column))}
        return {row: cell for row, cell in cells.items() if not (is_compared and OTHER in cell.marks)}

    @cached_property
    def best(self) -> dict[int, Best]:
        """The best method by number of shots; a cell with the mark OTHER does not compete."""
        return {c: self._find_best(c) for c in (self.columns or [ZERO_SHOTS]) if self.list_cells(c)}

    def _find_best(self, column: int) -> Best:
        """Return the best method at a number of shots."""
        cells = self.list_cells(column)
        name = max(cells, key=lambda row: cells[row].mean)
        best = Best(name, cells[name])
        for row in cells:
            result = self.compare(name, row, column) if row != name else None
            if isinstance(result, str):
                best.unknown[row] = result
            elif result:
                (best.above if result.is_shown and result.difference > 0 else best.equal).append(row)
        return best

    def compare(self, first: str, second: str, column: int | None) -> Comparison | str:
        """Return the paired comparison of two rows at a number of shots; None: over all that both have."""
        return compare_cells(self.select(first, column), self.select(second, column))

    def find_fewest(self, is_trained: bool) -> tuple[str, int] | None:
        """Return the row with the fewest trainable parameters that is not shown to be less accurate than the best one.

        It is at ``column``, with the number of parameters; with ``is_trained``, only of rows that have any. None if
        there are no comparisons.
        """
        best, cells = self.best[self.column], self.list_cells(self.column)
        if not best.above and not best.equal:
            return None
        rows = [row for row in (best.method, *best.equal) if cells[row].parameters]
        counts = {row: max(cells[row].parameters) for row in rows}
        rows = [row for row in rows if counts[row] or not is_trained]
        chosen = min(rows, key=lambda row: (counts[row], -cells[row].mean), default=None)
        return None if chosen is None else (chosen, counts[chosen])

    def read_predictions(self, row: str, column: int) -> dict[int, Predictions]:
        """Return the predictions by seed of a cell without the mark OTHER; {} if a run has none of these classes."""
        cell = self.list_cells(column).get(row)
        try:
            predictions = {run.seed: read_predictions(run) for run in cell.runs} if cell else {}
        except UserError:
            return {}
        highest = max((max(p.labels.max(), p.classes.max()) for p in predictions.values()), default=0)
        return predictions if highest < len(self.classes) else {}


def read_curve(run: Run) -> Curve | None:
    """Return the learning curve in a run's log; None if the log is absent or has no such lines."""
    try:
        text = (run.folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    points: dict[int, tuple[float, float]] = {}
    for epoch, loss, rate in EPOCH_LINE.findall(text):
        try:
            points[int(epoch)] = float(loss), float(rate)  # the last line of an epoch counts
        except ValueError:
            continue
    points = {epoch: values for epoch, values in points.items() if np.isfinite(values).all()}
    chosen = sorted(points)[:: -(-len(points) // MAX_EPOCHS) or 1]
    return Curve(chosen, [points[e][0] for e in chosen], [points[e][1] for e in chosen]) if chosen else None


def get_dates(runs: Iterable[Run]) -> list[str]:
    """Return the first and the last day on which records were written, once if they are the same, as ISO dates."""
    times = [(run.folder / RECORD_FILE).stat().st_mtime for run in runs]
    days = {date.fromtimestamp(time).isoformat() for time in (min(times), max(times))} if times else set()
    return sorted(days)


def get_image_folder(run: Run, root: str) -> Path:
    """Return the folder of a run's data sets: ``root``, or else that of its config."""
    return Path(root or str(run.config.get("DATASET.ROOT", "."))).expanduser()


def get_run_decoding(run: Run) -> Decoding:
    """Return how the run decoded images."""
    white_level = run.config.get("INPUT.WHITE_LEVEL", ORIGINAL.white_level)
    return Decoding(max(white_level, 0), run.config.get("INPUT.ORIENTATION") or ORIGINAL.orientation)


def group_facts(runs: Iterable[Run]) -> dict[str, dict[str, list[Run]]]:
    """Return where results are from: by the fact's key in ``texts.yaml``, the runs of each of its values."""
    facts: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        for key, value in _list_facts(run):
            facts.setdefault(key, {}).setdefault(value, []).append(run)
    return facts


def _list_facts(run: Run) -> Iterable[tuple[str, str]]:
    """Yield the facts on the code, the weights, the data and the machine of a run, as (key, text)."""
    record = run.record
    code, weights, machine = (record.get(key) or {} for key in ("code", "weights", "machine"))
    modified = {True: " + changes", False: ""}.get(code.get("modified"), "")
    yield "commit", f"{code.get('commit') or '-'}{modified} (SHA-256 {str(code.get('sha256', '-'))[:16]})"
    yield "weights", f"{weights.get('backbone', '-')}, SHA-256 {weights.get('sha256', '-')}"
    for split in ("test", "val", "train_x"):
        if isinstance(entry := record.get("splits", {}).get(split), dict):
            place = "" if split == "test" else f" ({run.shots or 'all'} shots, seed {run.seed})"
            yield f"split_{split}", f"{entry.get('images')} images{place}, SHA-256 {str(entry.get('sha256'))[:16]}"
    yield "system", f"{machine.get('system', '-')}, {machine.get('processor', '-')}"
    yield "device", ", ".join([str(machine.get("device", "-")), *map(str, machine.get("accelerators") or [])])
    yield "threads", f"{machine.get('threads', '-')} / {machine.get('cores', '-')}"
    yield "versions", ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items() if v != "not installed")
