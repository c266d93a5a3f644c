"""An executor that runs a sweep's trials on this machine: one after another, or several processes at a time."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process

import train

from .grid import Trial
from .schedule import TrialOutcomes


def count_cores() -> int:
    """Return the number of cores that Slurm assigned to this process; without Slurm, that of the machine."""
    return int(os.environ.get("SLURM_CPUS_PER_TASK") or os.cpu_count() or 1)


def run_trial(trial: Trial, threads: int) -> str | None:
    """Run a trial in this process, with output to its log.txt only; return the error message, or None for success.

    Raises:
        KeyboardInterrupt: the trial was stopped by Ctrl-C.
    """
    import torch

    torch.set_num_threads(threads)
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            code = train.main(list(trial.command))
        except SystemExit as stop:  # argparse
            code = stop.code
        except Exception:
            return traceback.format_exc().strip()
    if code == 130:  # of train.main after Ctrl-C
        raise KeyboardInterrupt
    return errors.getvalue().strip() or f"exit code {code}" if code else None


def exit_with_parent() -> None:
    """Start a thread that ends this process when the sweep's process ends, even by SIGKILL.

    A trial that outlived its sweep would hold the lock of its folder.
    """
    parent = parent_process()
    assert parent is not None, "a pool calls this in a process that it started"

    def exit_after_parent() -> None:
        """Wait for the end of the parent process, then end this one at once."""
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=exit_after_parent, daemon=True).start()


def run_trials(trials: list[Trial], jobs: int, threads: int) -> TrialOutcomes:
    """Run the trials, ``jobs`` at a time with ``threads`` threads each; yield (trial, error or None) as each ends.

    A single job runs in this process; several run in a pool. The pool gets a trial only when a process is free: a pool
    runs its queue to the end even if the sweep is stopped.
    """
    if jobs == 1:
        yield from ((trial, run_trial(trial, threads)) for trial in trials)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=exit_with_parent)
    running: dict[Future, Trial] = {}
    try:
        for trial in trials:
            if len(running) == jobs:
                yield from wait_for_trials(running)
            try:
                running[pool.submit(run_trial, trial, threads)] = trial
            except BrokenProcessPool:
                yield trial, "not started: the process of another run was killed (out of memory?)"
        while running:
            yield from wait_for_trials(running)
    finally:
        pool.shutdown(cancel_futures=True)


def wait_for_trials(running: dict[Future, Trial]) -> TrialOutcomes:
    """Wait until at least one trial ends; remove each ended trial from ``running``; yield (trial, error or None)."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        trial = running.pop(future)
        broken = isinstance(future.exception(), BrokenProcessPool)
        yield trial, "its process was killed (out of memory?)" if broken else future.result()
