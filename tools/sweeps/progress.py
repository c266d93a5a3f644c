"""What a sweep says while it runs: a line for each run that has ended, and the table of accuracies as it grows."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from dassl.utils import UserError
from dassl.utils.results import read_record
from tools.sweeps.grid import Cell
from tools.tables import cells as tables

EVERY = 30  # seconds between two tables in a file, which cannot be rewritten
SEED = re.compile(r"(^|[/_-])seed_?\d+(?=$|[/_-])")
SHOTS = re.compile(r"(^|[/_-])(\d+_?shots?|shots?_?\d+)(?=$|[/_-])")


class GrowingTable:
    """The mean accuracy of each method at each number of shots, over the runs that have ended. On a terminal the table
    is rewritten below the lines; elsewhere it is printed again every ``EVERY`` seconds, and at the end."""

    def __init__(self, output: Path, cells: Iterable[Cell]):
        """``cells`` are the runs that are finished already, in folders below ``output``."""
        self.output = output
        self.rows: dict[str, dict[int, tables.Cell]] = {}
        self.lines = 0  # of the table that stands on the terminal
        self.shown = time.monotonic()
        for cell in cells:
            self.add(cell)

    def add(self, cell: Cell) -> None:
        """Take in a run that has ended."""
        try:
            record = read_record(cell.folder)
            accuracy, shots = record["accuracy"], record["config"]["DATASET"]["NUM_SHOTS"]
        except (UserError, KeyError, TypeError):
            return
        folder = cell.folder.relative_to(self.output).as_posix()
        named = SHOTS.search(folder)
        shots = int(re.search(r"\d+", named[0])[0]) if named else max(shots, 0)
        if accuracy is not None:
            row = self.rows.setdefault(method_of(folder), {})
            row.setdefault(shots, tables.Cell()).accuracies.append(accuracy)

    def __str__(self) -> str:
        from tabulate import tabulate

        columns = sorted(set().union(*self.rows.values()))
        rows = [[name, *(str(row.get(shots, "-")) for shots in columns)] for name, row in sorted(self.rows.items())]
        head = ["accuracy (%)", *map(tables.shots_text, columns)]
        return tabulate(rows, head, disable_numparse=True, colalign=["left", *["right"] * len(columns)])

    def say(self, line: str) -> None:
        """Print a line, and the table if it is time for it."""
        if self.lines:
            sys.stdout.write(f"\x1b[{self.lines}F\x1b[J")  # to the table's first line; clear from there
            self.lines = 0
        print(line, flush=True)
        text = str(self) if self.rows else ""
        height = text.count("\n") + 1
        if text and sys.stdout.isatty() and height < shutil.get_terminal_size().lines - 1:
            print(text, flush=True)
            self.lines = height
        elif text and time.monotonic() - self.shown >= EVERY:
            print(text, flush=True)
            self.shown = time.monotonic()

    def end(self) -> None:
        """Print the table, unless it stands there."""
        if self.rows and not self.lines:
            print(self, flush=True)


def method_of(folder: str) -> str:
    """A run's folder without its seed and shots: ``CoOp/rn50_4shots_ctx4/seed1`` -> ``CoOp/rn50_ctx4``."""
    return SHOTS.sub("", SEED.sub("", folder)).strip("/_-") or folder
