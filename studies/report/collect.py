"""What the report shows of a study beside its table: the best methods, learning curves, and where results are from."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dassl.utils import UserError
from dassl.utils.logger import LOG_FILE
from studies.tables.cells import OTHER, Cell
from studies.tables.paired import Comparison, compare_cells
from studies.tables.predictions import Predictions, read_predictions
from studies.tables.runs import Run
from studies.tables.study import ZERO_SHOTS, Study

MAX_EPOCHS = 60  # points of a learning curve: they show its shape, and the file of 269 runs stays below 6 MB
# A line of a training log, with the mean loss of the epoch so far, and the learning rate; bounded, as logs may be odd.
NUMBER = r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
EPOCH_LINE = re.compile(rf"epoch \[(\d{{1,9}})/\d+\] batch .{{,200}}?\bloss \S+ \({NUMBER}\).{{,2000}}\blr {NUMBER} ")


@dataclass
class Best:
    """The most accurate method at a number of shots.

    It is shown to be more accurate than those in ``above``; to those in ``equal`` no difference is shown; of those in
    ``unknown`` it cannot be told, for the reason there.
    """

    method: str
    cell: Cell
    above: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)


@dataclass
class StudyData:
    """A study in a folder, and what is read of its runs beside their records."""

    folder: Path
    study: Study
    unread: dict[str, None] = field(default_factory=dict)  # why predictions are in no plot

    @cached_property
    def table(self) -> dict[str, dict[int, Cell]]:
        """The cells that have an accuracy, by row and column."""
        rows = {row: {c: cell for c, cell in cells.items() if cell.runs} for row, cells in self.study.table.items()}
        return {row: cells for row, cells in rows.items() if cells}

    @cached_property
    def runs(self) -> list[Run]:
        """The runs of all cells."""
        return [run for cells in self.table.values() for cell in cells.values() for run in cell.runs]

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds of the runs that train, or of all runs if none does."""
        return sorted({run.seed for run in self.runs if run.is_trained} or {run.seed for run in self.runs})

    @cached_property
    def columns(self) -> list[int]:
        """The numbers of shots for which a trained method has a result."""
        return sorted({column for cells in self.table.values() for column in cells} - {ZERO_SHOTS})

    @cached_property
    def column(self) -> int:
        """The number of shots that the most methods have, of several the most shots; ZERO_SHOTS if nothing trains.

        Cells with the mark OTHER do not count.
        """
        counts = Counter(
            column for column in self.columns for row in self.get_cells(column, True) if column in self.table[row]
        )
        return max(counts, key=lambda column: (counts[column], column), default=max(self.columns, default=ZERO_SHOTS))

    @cached_property
    def zero_shot(self) -> str | None:
        """The row of zero-shot CLIP: of the methods that train nothing, the first; None without one."""
        return next((row for row, cells in self.table.items() if ZERO_SHOTS in cells), None)

    @cached_property
    def classes(self) -> list[str]:
        """The class names of most runs; those of several classes are followed by the label."""
        names = Counter(tuple(map(str, run.record.get("classnames", ()))) for run in self.runs).most_common(1)[0][0]
        counts = Counter(names)
        return [f"{name} ({label})" if counts[name] > 1 else name for label, name in enumerate(names)]

    def get_cells(self, column: int, is_compared: bool = False) -> dict[str, Cell]:
        """Return the cells of all rows at a number of shots; a method that trains nothing has its cell at each.

        With ``is_compared``, cells with the mark OTHER are left out.
        """
        cells = {row: cell for row, cells in self.table.items() if (cell := cells.get(column, cells.get(ZERO_SHOTS)))}
        return {row: cell for row, cell in cells.items() if not (is_compared and OTHER in cell.marks)}

    def compare(self, first: str, second: str, column: int | None) -> Comparison | str:
        """Return the paired comparison of two rows at a number of shots; None: over all that both have."""
        rows = (self.table[row] for row in (first, second))
        one, other = (
            {c: cell for c, cell in cells.items() if column in (c, None) or c == ZERO_SHOTS} for cells in rows
        )
        return compare_cells(one, other)

    @cached_property
    def best(self) -> dict[int, Best]:
        """The best method by number of shots; a cell with the mark OTHER does not compete."""
        best: dict[int, Best] = {}
        for column in self.columns or [ZERO_SHOTS]:
            cells = self.get_cells(column, is_compared=True) or self.get_cells(column)
            name = max(cells, key=lambda row: cells[row].mean)
            best[column] = Best(name, cells[name])
            for row in (row for row in cells if row != name):
                result = self.compare(name, row, column)
                if isinstance(result, str):
                    best[column].unknown[row] = result
                elif result.is_shown and result.difference < 0:
                    best[column].unknown[row] = "with the seeds that both have, the other one is more accurate"
                else:
                    (best[column].above if result.is_shown else best[column].equal).append(row)
        return best

    def find_fewest(self, least: int = 0) -> tuple[str, int] | None:
        """Return the row with the fewest trainable parameters that is not shown to be less accurate than the best one.

        It is at ``column``, has ``least`` parameters or more, and comes with their number; None without comparisons.
        """
        best, cells = self.best[self.column], self.get_cells(self.column)
        rows = [best.method, *best.equal] if best.above or best.equal else []
        counts = {row: max(cells[row].parameters) for row in rows if cells[row].parameters}
        fits = [row for row in counts if counts[row] >= least]
        chosen = min(fits, key=lambda row: (counts[row], -cells[row].mean), default=None)
        return None if chosen is None else (chosen, counts[chosen])

    def list_choices(self) -> list[tuple[str, int]]:
        """Return (row, column) of all cells: first of the best method, and first ``column``."""
        choices = [(row, column) for row, cells in self.table.items() for column in cells]
        best = self.best[self.column].method
        return sorted(choices, key=lambda choice: (choice[0] != best, choice[1] != self.column))

    def read_predictions(self, row: str, column: int) -> dict[int, Predictions]:
        """Return the predictions by seed of a cell; {} if it has the mark OTHER, or a run has none of these classes."""
        cell = self.get_cells(column, is_compared=True).get(row)
        try:
            predictions = {run.seed: read_predictions(run) for run in cell.runs} if cell else {}
            for run in cell.runs if cell else ():
                if max(predictions[run.seed].labels.max(), predictions[run.seed].classes.max()) >= len(self.classes):
                    raise UserError(f"the predictions in {run.folder} are of other classes")
        except UserError as error:
            self.unread[str(error)] = None
            return {}
        return predictions

    def list_predictions(self) -> Iterator[tuple[str, int, list[Predictions]]]:
        """Yield (row, column, predictions) of the choices that have them."""
        for row, column in self.list_choices():
            if runs := [*self.read_predictions(row, column).values()]:
                yield row, column, runs


def read_curve(run: Run) -> list[tuple[int, float, float]]:
    """Return (epoch, mean loss, learning rate) of epochs in a run's log; [] if it is absent or has no such lines."""
    try:
        with open(run.folder / LOG_FILE, encoding="utf-8", errors="replace") as file:
            found = [match.groups() for line in file if (match := EPOCH_LINE.match(line))]
    except OSError:
        return []
    points = {int(epoch): (float(loss), float(rate)) for epoch, loss, rate in found}  # the last line of each
    points = {epoch: point for epoch, point in points.items() if all(map(math.isfinite, point))}
    return [(epoch, *points[epoch]) for epoch in sorted(points)[:: -(-len(points) // MAX_EPOCHS) or 1]]


def list_facts(run: Run) -> dict[str, str]:
    """Return where the results of a run are from: its code, weights, data and machine, by keys of ``texts.yaml``."""
    record = run.record
    code, weights, machine, splits = (record.get(key) or {} for key in ("code", "weights", "machine", "splits"))
    changes = " + changes" * bool(code.get("modified"))
    place = f" ({run.shots or 'all'} shots, seed {run.seed})"
    facts = {
        "commit": f"{code.get('commit') or '-'}{changes}, SHA-256 {str(code.get('sha256', '-'))[:16]}",
        "weights": f"{weights.get('backbone', '-')}, SHA-256 {weights.get('sha256', '-')}",
    }
    for name, entry in splits.items():
        if isinstance(entry, dict):
            facts[f"split_{name}"] = (
                f"{entry.get('images')} images{place * (name != 'test')}, SHA-256 {entry.get('sha256')}"
            )
    return facts | {
        "system": f"{machine.get('system', '-')}, {machine.get('processor', '-')}",
        "device": ", ".join(map(str, [machine.get("device", "-"), *(machine.get("accelerators") or [])])),
        "threads": f"{machine.get('threads', '-')} / {machine.get('cores', '-')}",
        "versions": ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items() if v != "not installed"),
    }
