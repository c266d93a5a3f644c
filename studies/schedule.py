"""The order of a sweep's trials: stages, the selection of unfinished trials, and the loop that runs them."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.engine.record import RECORD_FILE, read_record
from dassl.utils import UserError

from .grid import Trial
from .progress import ProgressPrinter

if TYPE_CHECKING:  # it loads PyTorch
    from trainers.inputs import CurrentInputs

TrialOutcomes = Generator[tuple[Trial, str | None], None, None]  # ended trials; None or the error
Executor = Callable[[list[Trial]], TrialOutcomes]  # runs trials that are independent of one another


def group_into_stages(trials: list[Trial]) -> list[list[Trial]]:
    """Return the trials in stages; a trial's stage is later than that of the trial whose model it evaluates.

    Raises:
        UserError: trials evaluate each other's models in a circle.
    """
    stages = []
    while trials:
        folders = {trial.folder for trial in trials}
        stages.append([trial for trial in trials if trial.model_dir not in folders])
        if not stages[-1]:
            raise UserError(f"{trials[0].folder} would evaluate a model that depends on its result; change --model-dir")
        trials = [trial for trial in trials if trial.model_dir in folders]
    return stages


def find_unfinished(stages: list[list[Trial]], inputs: CurrentInputs) -> dict[Path, str]:
    """Return why trials must run, by folder; without finished trials, unless their model will be trained again."""
    reasons: dict[Path, str] = {}
    for trial in itertools.chain(*stages):
        is_dependent = trial.model_dir in reasons
        if reason := "its model is trained again" if is_dependent else trial.find_rerun_reason(inputs):
            reasons[trial.folder] = reason
    return reasons


def format_reruns(reasons: Mapping[Path, str]) -> list[str]:
    """Return a line for each reason of ``find_unfinished`` why trials that have a record run again."""
    folders = defaultdict(list)
    for folder, reason in reasons.items():
        if (folder / RECORD_FILE).exists():
            folders[reason].append(folder)
    more = {reason: f" and {len(names) - 1} more" if len(names) > 1 else "" for reason, names in folders.items()}
    return [f"run again: {names[0]}{more[reason]}: {reason}" for reason, names in folders.items()]


def run_stages(stages: list[list[Trial]], executor: Executor) -> TrialOutcomes:
    """Run the trials stage by stage with ``executor``; yield (trial, error or None) as each ends.

    A trial that evaluates the model of a failed trial is not run, and has an error.
    """
    failed: set[Path] = set()
    for stage in stages:
        blocked = [(t, f"not started: its model's run failed, {t.model_dir}") for t in stage if t.model_dir in failed]
        ready = [trial for trial in stage if trial.model_dir not in failed]
        for trial, error in itertools.chain(blocked, executor(ready)):
            if error:
                failed.add(trial.folder)
            yield trial, error


def run_sweep(stages: list[list[Trial]], executor: Executor, progress: ProgressPrinter) -> list[Trial]:
    """Run the trials, print a line for each as it ends and a final table; return the trials that failed."""
    total, start, failed = sum(map(len, stages)), time.time(), []
    with progress.watch(itertools.chain(*stages)), closing(run_stages(stages, executor)) as outcomes:
        for trial, error in outcomes:
            progress.completed += 1
            accuracy = None if error else read_record(trial.folder)["accuracy"]
            outcome = f"FAILED\n{error}" if error else "done" if accuracy is None else f"{accuracy:.2f}%"
            failed += [trial] if error else []
            seconds = time.time() - start
            progress.print_result(trial, f"[{progress.completed}/{total}, {seconds:.0f} s] {trial.folder}: {outcome}")
    progress.print_table()
    return failed
