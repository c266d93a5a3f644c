"""The order of a sweep's trials: which come before which, which are to be done, and doing them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from dassl.engine.record import read_record
from dassl.utils import UserError

from .grid import Trial
from .progress import ProgressPrinter

TrialOutcomes = Iterator[tuple[Trial, str | None]]  # trials that have ended: None, or what went wrong
Executor = Callable[[list[Trial]], TrialOutcomes]  # runs trials that do not wait for one another


def group_into_stages(trials: list[Trial]) -> list[list[Trial]]:
    """Return the trials in their order, each in a later stage than the one whose model it evaluates.

    Raises:
        UserError: trials would have to wait for one another.
    """
    stages = []
    while trials:
        waiting = {trial.folder for trial in trials}
        stages.append([trial for trial in trials if trial.model not in waiting])
        if not stages[-1]:
            raise UserError(f"{trials[0].folder} is to evaluate a model that comes out of its own result: --model-dir")
        trials = [trial for trial in trials if trial.model in waiting]
    return stages


def select_unfinished(stages: list[list[Trial]]) -> list[list[Trial]]:
    """Return the stages without the trials that are finished and whose models stay as they are."""
    todo: set[Path] = set()
    for trial in itertools.chain(*stages):
        if not trial.finished or trial.model in todo:
            todo.add(trial.folder)
    return [[trial for trial in stage if trial.folder in todo] for stage in stages]


def run_stages(stages: list[list[Trial]], executor: Executor) -> TrialOutcomes:
    """Run the trials stage by stage and yield each as it ends; none is started whose model's run failed."""
    failed: set[Path] = set()
    for stage in stages:
        lost = [
            (trial, f"not started: its model's run failed, {trial.model}") for trial in stage if trial.model in failed
        ]
        ready = [trial for trial in stage if trial.model not in failed]
        for trial, error in itertools.chain(lost, executor(ready)):
            if error:
                failed.add(trial.folder)
            yield trial, error


def run_sweep(stages: list[list[Trial]], executor: Executor, progress: ProgressPrinter) -> list[Trial]:
    """Run the trials, with a line for each; return those that failed."""
    total, start, failed = sum(map(len, stages)), time.time(), []
    with closing(run_stages(stages, executor)) as outcomes:
        for trial, error in outcomes:
            progress.done += 1
            accuracy = None if error else read_record(trial.folder)["accuracy"]
            outcome = f"FAILED\n{error}" if error else "done" if accuracy is None else f"{accuracy:.2f}%"
            failed += [trial] if error else []
            progress.say(f"[{progress.done}/{total}, {time.time() - start:.0f} s] {trial.folder}: {outcome}")
    progress.end()
    return failed
