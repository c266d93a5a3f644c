"""The output of a running sweep: a line for each trial that has ended, and a table of the accuracies so far."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from dassl.engine.record import read_record
from dassl.utils import UserError

from .grid import Trial

TABLE_SECONDS = 30  # seconds between two tables: with more tables, the lines between them would be hard to follow
SEED_PATTERN = re.compile(r"(^|[/_-])seed_?\d+(?=$|[/_-])")  # a seed in a trial's folder, as people write it
FOLDER_SHOTS_PATTERN = re.compile(r"(^|[/_-])(\d+_?shots?|shots?_?\d+)(?=$|[/_-])")  # likewise a number of shots


class ProgressPrinter:
    """Prints lines; prints a table of accuracies every ``TABLE_SECONDS`` seconds and on request.

    Args:
        output: the folder of the sweep.
        trials: the trials that the table averages; empty: no table is printed.
    """

    def __init__(self, output: Path, trials: Sequence[Trial]):
        self.output, self.trials = output, trials
        self.completed = 0  # trials that have ended, which the caller counts
        self.last_table_time = time.monotonic()

    def print_line(self, line: str) -> None:
        """Print a line, then the table if the last one is older than ``TABLE_SECONDS``."""
        print(line, flush=True)
        if time.monotonic() - self.last_table_time >= TABLE_SECONDS:
            self.print_table()

    def print_table(self) -> None:
        """Print the table of accuracies, unless it is empty."""
        if text := self.format_table():
            print(text, flush=True)
        self.last_table_time = time.monotonic()

    def format_table(self) -> str:
        """Return a Markdown table of mean accuracies (%) by method (row) and shots (column); empty without any."""
        import pandas as pd

        rows = [row for trial in self.trials if (row := self._read_row(trial))]
        if not rows:
            return ""
        frame = pd.DataFrame(rows, columns=["accuracy (%)", "shots", "accuracy"])
        frame = frame.pivot_table("accuracy", "accuracy (%)", "shots")
        return frame.map("{:.2f}".format).replace("nan", "-").to_markdown(disable_numparse=True, stralign="right")

    def _read_row(self, trial: Trial) -> tuple[str, int, float] | None:
        """Return a trial's method, shots and accuracy in percent; None if the record is damaged or has no accuracy."""
        try:
            record = read_record(trial.folder)
            accuracy, shots = record["accuracy"], max(record["config"]["DATASET"]["NUM_SHOTS"], 0)
        except (UserError, KeyError, TypeError):
            return None
        folder = trial.folder.relative_to(self.output).as_posix()
        if match := FOLDER_SHOTS_PATTERN.search(folder):
            shots = int(re.sub(r"\D", "", match[0]))
        return None if accuracy is None else (get_method_name(folder), shots, accuracy)


def get_method_name(folder: str) -> str:
    """Return a trial's folder without its seed and shots: ``CoOp/rn50_4shots_ctx4/seed1`` -> ``CoOp/rn50_ctx4``."""
    return FOLDER_SHOTS_PATTERN.sub("", SEED_PATTERN.sub("", folder)).strip("/_-") or folder
