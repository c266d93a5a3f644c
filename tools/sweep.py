"""Many runs with one command: every combination in a grid, each as ``train.py`` would do it, into its own folder.

    python tools/sweep.py configs/sweeps/digits.yaml
    python tools/sweep.py configs/sweeps/digits.yaml --seeds 1,2,3 --jobs 4
    python tools/sweep.py configs/sweeps/digits.yaml OPTIM.MAX_EPOCH 50       # KEY VALUE pairs go to every run

A run's grid gives each axis a list of values, which go where ``{axis}`` stands in its folder and its arguments. An axis
that is named as a config key is (OPTIM.LR, SEED: with a dot, or in capitals) is also set for the run by itself. This
makes four runs:

    runs:
      - folder: CoOp/lr{OPTIM.LR}/seed{seed}
        arguments: --trainer CoOp --seed {seed}
        grid:
          OPTIM.LR: [0.002, 0.02]
          seed: [1, 2]

A value is always one argument, whatever spaces it has. A folder is of one run alone.

In arguments, ``{output}`` is the sweep's folder. A run whose --model-dir is the folder of another run of the sweep
(``{output}/CoOp/lr{OPTIM.LR}/seed{seed}``) comes after that one, and is not started if it fails.

Runs that are finished (their result.json is of the same command, and newer than its config files and its model) are
skipped, so a sweep that was stopped goes on. A run that fails is listed at the end, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import UserError, command_line, stopped
from dassl.utils.results import read_record
from tools.sweeps.grid import Cell, cells_of, read_sweep


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


def run_all(cells: list[Cell], jobs: int, threads: int) -> Iterator[tuple[Cell, str | None]]:
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


def next_ended(running: dict[Future, Cell]) -> Iterator[tuple[Cell, str | None]]:
    """Wait until a run ends; takes out and yields those that have."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        cell = running.pop(future)
        broken = isinstance(future.exception(), BrokenProcessPool)
        yield cell, "its process was killed (out of memory?)" if broken else future.result()


def in_stages(cells: list[Cell]) -> list[list[Cell]]:
    """The runs in their order, each in a later stage than the run whose model it evaluates.

    Raises:
        UserError: runs would have to wait for one another.
    """
    stages = []
    while cells:
        waiting = {cell.folder for cell in cells}
        stages.append([cell for cell in cells if cell.model not in waiting])
        if not stages[-1]:
            raise UserError(f"{cells[0].folder} is to evaluate a model that comes out of its own result: --model-dir")
        cells = [cell for cell in cells if cell.model in waiting]
    return stages


def unfinished(stages: list[list[Cell]]) -> list[list[Cell]]:
    """The runs that are to be done: those that are not finished, and those whose models will be others."""
    todo: dict[Path, Cell] = {}
    for cell in itertools.chain(*stages):
        if not cell.finished or cell.model in todo:
            todo[cell.folder] = cell
    return [[cell for cell in stage if cell.folder in todo] for stage in stages]


def run_stages(stages: list[list[Cell]], jobs: int, threads: int) -> Iterator[tuple[Cell, str | None]]:
    """Do the runs stage by stage, but none whose model's run failed; yields each as :func:`run_all` does."""
    failed: set[Path] = set()
    for stage in stages:
        lost = [(cell, f"not started: its model's run failed, {cell.model}") for cell in stage if cell.model in failed]
        ready = [cell for cell in stage if cell.model not in failed]
        for cell, error in itertools.chain(lost, run_all(ready, jobs, threads)):
            if error:
                failed.add(cell.folder)
            yield cell, error


def report(cells: list[Cell], jobs: int, threads: int, command: list[str]) -> list[Cell]:
    """Do the runs that are not finished, with a line for each; returns those that failed. ``command`` holds the
    arguments of this program."""
    stages = unfinished(in_stages(cells))
    todo = list(itertools.chain(*stages))
    print(f"{len(cells)} runs, {len(cells) - len(todo)} finished already, {jobs} at a time; transcripts are in log.txt")
    start, failed = time.time(), []
    number = 0
    try:
        for number, (cell, error) in enumerate(run_stages(stages, jobs, threads), start=1):
            if error:
                failed.append(cell)
            outcome = f"FAILED\n{error}" if error else outcome_of(cell)
            print(f"[{number}/{len(todo)}, {time.time() - start:.0f} s] {cell.folder}: {outcome}", flush=True)
    except KeyboardInterrupt as stop:
        raise stopped(f"after {number} of {len(todo)} runs", "with the others", __file__, command) from stop
    return failed


def outcome_of(cell: Cell) -> str:
    accuracy = read_record(cell.folder)["accuracy"]
    return "done" if accuracy is None else f"{accuracy:.2f}%"


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="a YAML file, such as configs/sweeps/digits.yaml")
    parser.add_argument("--root", default="", help="folder of the data sets, for every run")
    parser.add_argument("--output-dir", default="", help="folder of the sweep, instead of the one in the file")
    parser.add_argument("--seeds", default="", help='instead of the seeds in the file, such as "1 2 3" or 1,2,3')
    parser.add_argument("--jobs", type=int, help="runs at a time (the number of cores / the file's threads)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides for every run")
    args = parser.parse_intermixed_args(argv)
    sweep = read_sweep(args.sweep)
    cores = os.cpu_count() or 1
    threads = sweep.get("threads") or cores
    cells = cells_of(sweep, args.output_dir, args.root, args.seeds.replace(",", " ").split(), args.opts)
    jobs = max(1, min(args.jobs or cores // threads, len(cells)))
    failed = report(cells, jobs, threads, sys.argv[1:] if argv is None else argv)
    if failed:
        print(f"{len(failed)} of {len(cells)} runs failed: {', '.join(str(cell.folder) for cell in failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
