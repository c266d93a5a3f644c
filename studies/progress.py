"""The output of a running sweep: what runs now, a line for each trial that has ended, and a table of accuracies."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dassl.utils import UserError

from .grid import Trial
from .tables.cells import select_tested
from .tables.runs import read_run
from .tables.study import collect_table, to_frame

TABLE_SECONDS = 30  # seconds between two tables: with more tables, the lines between them would be hard to follow
STATUS_SECONDS = 30  # seconds between two lines on what runs now, where they are not one line that is rewritten
REFRESH_SECONDS = 1  # seconds between two states of that one line, on a terminal
# The lines of a log that say how far its run is: of training (dassl/engine/hooks.py), of dassl/utils/progress.py.
STATUS_PATTERN = re.compile(r"^(?:(epoch \[\d+/\d+\]).* (eta \S+)|(.+: [\d,]+ of [\d,]+, \S+ left))$", re.MULTILINE)
TAIL_BYTES = 8_192  # bytes at the end of a log in which its last such line is searched


class ProgressPrinter:
    """Prints a line for each trial that has ended; between them, what runs now; and a table of accuracies.

    Args:
        output: the folder of the sweep.
        trials: the trials that the table averages; empty: no table is printed.
    """

    def __init__(self, output: Path, trials: Sequence[Trial]):
        self.output, self.trials = output, trials
        self.completed = 0  # trials that have ended, which the caller counts
        self.last_table_time = time.monotonic()
        self.stream = sys.stdout  # a trial in this process redirects sys.stdout
        self.lock = threading.Lock()  # of the stream and of log_times
        self.log_times: dict[Path, int | None] = {}  # by folder of each trial to come: when its log had last changed

    def print_result(self, trial: Trial, line: str) -> None:
        """Print the line of a trial that has ended, then the table if the last one is older than TABLE_SECONDS."""
        with self.lock:
            self.log_times.pop(trial.folder, None)
            self._clear_status()
            print(line, file=self.stream, flush=True)
        if time.monotonic() - self.last_table_time >= TABLE_SECONDS:
            self.print_table()

    @contextmanager
    def watch(self, trials: Iterable[Trial]) -> Iterator[None]:
        """Print what runs now during the body of a ``with``: a line that is rewritten; on no terminal, now and then."""
        self.log_times = {trial.folder: get_log_time(trial.folder) for trial in trials}
        ended = threading.Event()
        seconds = REFRESH_SECONDS if self.stream.isatty() else STATUS_SECONDS

        def print_repeatedly() -> None:
            """Print what runs until the body has ended."""
            while not ended.wait(seconds):
                self.print_status()

        thread = threading.Thread(target=print_repeatedly, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with self.lock:
                self._clear_status()

    def print_status(self) -> None:
        """Print the folder of each trial that runs, with the last progress in its log."""
        with self.lock:
            changed = [folder for folder, before in self.log_times.items() if get_log_time(folder) != before]
            states = [f"{folder.relative_to(self.output).as_posix()} {read_status(folder)}" for folder in changed]
            if states and self.stream.isatty():
                self._clear_status()
                columns = shutil.get_terminal_size().columns - 1  # a full line would begin the next one
                print("; ".join(states)[:columns], end="", file=self.stream, flush=True)
            elif states:
                print(f"running: {'; '.join(states)}", file=self.stream, flush=True)

    def _clear_status(self) -> None:
        """Erase the terminal's line on what runs; on no terminal, do nothing."""
        if self.stream.isatty():
            print("\r\x1b[K", end="", file=self.stream, flush=True)

    def print_table(self) -> None:
        """Print the table of accuracies, unless it is empty."""
        if text := self.format_table():
            with self.lock:
                self._clear_status()
                print(text, file=self.stream, flush=True)
        self.last_table_time = time.monotonic()

    def format_table(self) -> str:
        """Return a Markdown table of the trials' mean accuracies (%), with the rows and columns of a study's table.

        It is empty without any. Trials whose records are missing or damaged are left out.
        """
        runs = []
        for trial in self.trials:
            with suppress(UserError):
                runs.append(read_run(trial.folder))
        table, _ = collect_table(select_tested(runs)[0])
        return to_frame(table).to_markdown(disable_numparse=True, stralign="right") if table else ""


def get_log_time(folder: Path) -> int | None:
    """Return when the log of the run in ``folder`` was last changed, in nanoseconds; None without a log."""
    with suppress(OSError):
        return (folder / "log.txt").stat().st_mtime_ns
    return None


def read_status(folder: Path) -> str:
    """Return how far the run in ``folder`` is, by the last such line of its log: ``epoch [3/50] eta 0:00:42``."""
    with suppress(OSError), open(folder / "log.txt", "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - TAIL_BYTES, 0))
        if matches := STATUS_PATTERN.findall(file.read().decode(errors="replace")):
            epoch, remaining, line = matches[-1]
            return line or f"{epoch} {remaining}"
    return "has started"
