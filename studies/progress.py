"""What a sweep prints while it runs: a line for each trial that has ended and, if asked for, a table of accuracies."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from dassl.engine.record import read_record
from dassl.utils import UserError

from .grid import Trial

TABLE_SECONDS = 30  # seconds between two tables: more often, nobody could follow the lines
SEED_PATTERN = re.compile(r"(^|[/_-])seed_?\d+(?=$|[/_-])")
SHOTS_PATTERN = re.compile(r"(^|[/_-])(\d+_?shots?|shots?_?\d+)(?=$|[/_-])")


class ProgressPrinter:
    """Prints lines, and the table every ``TABLE_SECONDS`` seconds and at the end.

    Args:
        output: the folder of the sweep.
        trials: the rows of the table; none: no table is printed.
    """

    def __init__(self, output: Path, trials: Sequence[Trial]):
        self.output, self.trials = output, trials
        self.done, self.printed = 0, time.monotonic()

    def say(self, line: str) -> None:
        print(line, flush=True)
        if time.monotonic() - self.printed >= TABLE_SECONDS:
            self.end()

    def end(self) -> None:
        if text := self.table():
            print(text, flush=True)
        self.printed = time.monotonic()

    def table(self) -> str:
        """Return the mean accuracy of each method at each number of shots; an empty string where there is none."""
        import pandas as pd

        rows = [row for trial in self.trials if (row := self._row(trial))]
        if not rows:
            return ""
        frame = pd.DataFrame(rows, columns=["accuracy (%)", "shots", "accuracy"])
        frame = frame.pivot_table("accuracy", "accuracy (%)", "shots")
        return frame.map("{:.2f}".format).replace("nan", "-").to_markdown(disable_numparse=True, stralign="right")

    def _row(self, trial: Trial) -> tuple[str, int, float] | None:
        try:
            record = read_record(trial.folder)
            accuracy, shots = record["accuracy"], max(record["config"]["DATASET"]["NUM_SHOTS"], 0)
        except (UserError, KeyError, TypeError):
            return None
        folder = trial.folder.relative_to(self.output).as_posix()
        if named := SHOTS_PATTERN.search(folder):
            shots = int(re.search(r"\d+", named[0])[0])
        return None if accuracy is None else (get_method_name(folder), shots, accuracy)


def get_method_name(folder: str) -> str:
    """Return a trial's folder without its seed and shots: ``CoOp/rn50_4shots_ctx4/seed1`` -> ``CoOp/rn50_ctx4``."""
    return SHOTS_PATTERN.sub("", SEED_PATTERN.sub("", folder)).strip("/_-") or folder
