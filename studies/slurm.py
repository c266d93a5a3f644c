"""A sweep as numbered trials, which array jobs of Slurm run one by one."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path

import train
from dassl.engine.record import find_staleness
from dassl.utils import UserError, check_at_least

from .grid import Trial


def format_trial_list(stages: list[list[Trial]]) -> list[str]:
    """Return a line for each trial: number in the sweep, stage, and folder, separated by tabs. Both count from 0."""
    numbers = itertools.count()
    return [f"{next(numbers)}\t{stage}\t{trial.folder}" for stage, trials in enumerate(stages) for trial in trials]


def format_arrays(stages: list[list[Trial]], folders: Collection[Path], size: int) -> list[str]:
    """Return a line "stage offset indices", such as ``0 1000 0-3,7``, for each Slurm array of trials in ``folders``.

    A trial's number, as in ``format_trial_list``, is its offset plus its index; indices
    are below ``size``, as Slurm limits them.
    """
    check_at_least(size, 1, "--arrays")
    first, lines = 0, []
    for stage, trials in enumerate(stages):
        numbers = [number for number, trial in enumerate(trials, start=first) if trial.folder in folders]
        for offset, array in itertools.groupby(numbers, key=lambda number: number - number % size):
            lines.append(f"{stage} {offset} {_format_ranges([number - offset for number in array])}")
        first += len(trials)
    return lines


def _format_ranges(numbers: list[int]) -> str:
    """Write ascending numbers as Slurm does: [0, 1, 2, 7] -> 0-2,7."""
    ranges = [list(pairs) for _, pairs in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    ends = [(pairs[0][1], pairs[-1][1]) for pairs in ranges]
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ends)


def run_trial_number(stages: list[list[Trial]], number: int, threads: int) -> int:
    """Run the trial with a number from ``format_trial_list``; return its exit code, or 0 if it was finished.

    Raises:
        UserError: no trial has the number, or the trial whose model this one evaluates is not finished.
    """
    trials = list(itertools.chain(*stages))
    if not 0 <= number < len(trials):
        raise UserError(f"no run has the number {number}; the numbers are 0 to {len(trials) - 1} (see --list)")
    trial = trials[number]
    model = next((n for n, other in enumerate(trials) if other.folder == trial.model_dir), None)
    if model is not None and find_staleness(trials[model].folder, trials[model].command):
        raise UserError(f"run {number} evaluates the model of run {model}, {trial.model_dir}, which is not finished")
    if not trial.find_rerun_reason():
        print(f"finished already: {trial.folder}")
        return 0
    import torch

    torch.set_num_threads(threads)
    return train.main(list(trial.command))
