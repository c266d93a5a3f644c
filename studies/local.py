"""The trials of a sweep on this machine: one after another, or in a few processes."""

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
    """Return the number of cores that this process may use, where Slurm says so; else of all."""
    return int(os.environ.get("SLURM_CPUS_PER_TASK") or os.cpu_count() or 1)


def run_trial(trial: Trial, threads: int) -> str | None:
    """Run one trial; return None, or what went wrong. Its output goes to its log.txt alone."""
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
    if code == 130:
        raise KeyboardInterrupt
    return errors.getvalue().strip() or f"exit code {code}" if code else None


def exit_with_parent() -> None:
    """End this process as soon as the sweep ends, even if that is killed: its trial would hold the run's folder."""

    def watch() -> None:
        connection.wait([parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_trials(trials: list[Trial], jobs: int, threads: int) -> TrialOutcomes:
    """Run the trials, ``jobs`` at a time; yield each as it ends.

    None waits in the pool, which would run its queue to the end even if the sweep is stopped.
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
    """Wait until a trial ends; remove and yield those that have."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        trial = running.pop(future)
        broken = isinstance(future.exception(), BrokenProcessPool)
        yield trial, "its process was killed (out of memory?)" if broken else future.result()
