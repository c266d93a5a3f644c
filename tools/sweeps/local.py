"""The runs of a sweep on this machine: one after another, or in a few processes."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process

from tools.sweeps.grid import Cell
from tools.sweeps.order import Ended


def run_cell(cell: Cell, threads: int) -> str | None:
    """Do one run; returns None, or what went wrong. Its transcript goes to its log.txt alone."""
    import torch

    import train

    torch.set_num_threads(threads)
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            code = train.main(list(cell.arguments))
        except SystemExit as stop:  # argparse
            code = stop.code
        except Exception:
            return traceback.format_exc().strip()
    if code == 130:
        raise KeyboardInterrupt
    return errors.getvalue().strip() or f"exit code {code}" if code else None


def end_with_parent() -> None:
    """Let this process end as soon as the sweep does, even if that is killed: its runs would otherwise stand in the way
    of the sweep that goes on."""

    def watch() -> None:
        connection.wait([parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_all(cells: list[Cell], jobs: int, threads: int) -> Ended:
    """Do the runs, ``jobs`` at a time; yields each as it ends. None waits in the pool, whose queue is run to its end
    even if the sweep is stopped."""
    if jobs == 1:
        yield from ((cell, run_cell(cell, threads)) for cell in cells)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=end_with_parent)
    running: dict[Future, Cell] = {}
    try:
        for cell in cells:
            if len(running) == jobs:
                yield from next_ended(running)
            try:
                running[pool.submit(run_cell, cell, threads)] = cell
            except BrokenProcessPool:
                yield cell, "not started: the process of another run was killed (out of memory?)"
        while running:
            yield from next_ended(running)
    finally:
        pool.shutdown(cancel_futures=True)


def next_ended(running: dict[Future, Cell]) -> Ended:
    """Wait until a run ends; takes out and yields those that have."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        cell = running.pop(future)
        broken = isinstance(future.exception(), BrokenProcessPool)
        yield cell, "its process was killed (out of memory?)" if broken else future.result()
