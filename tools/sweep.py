"""Many runs with one command: every combination in a grid, each as ``train.py`` would do it, into its own folder.

    python tools/sweep.py configs/sweeps/digits.yaml
    python tools/sweep.py configs/sweeps/digits.yaml --seeds 1,2,3 --jobs 4
    python tools/sweep.py configs/sweeps/digits.yaml OPTIM.MAX_EPOCH 50       # KEY VALUE pairs go to every run

Runs that are finished (their result.json is of the same command, and newer than its config files) are skipped, so a
sweep that was stopped goes on. A run that fails is listed at the end, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from dassl.utils import UserError, check_availability, command_line
from dassl.utils.results import is_finished, read_record

# The keys of a sweep and of a run in it, with the type of their values; those that must be there.
KEYS = {"output": str, "threads": int, "arguments": str, "runs": list}
RUN_KEYS = {"folder": str, "arguments": str, "grid": dict}
NEEDED, RUN_NEEDED = {"output", "runs"}, {"folder"}


@dataclass(frozen=True)
class Cell:
    """One run of the grid: its folder, and the arguments for ``train.py``."""

    folder: Path
    arguments: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether its folder holds the record of a run with these very arguments."""
        return is_finished(self.folder, self.arguments)


def read_sweep(path: Path) -> dict:
    """The YAML of a sweep.

    Raises:
        UserError: no such file, not YAML, or keys that are missing, unknown or of the wrong type.
    """
    try:
        sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    _check(sweep, KEYS, NEEDED, f"{path}")
    for number, run in enumerate(sweep["runs"], start=1):
        _check(run, RUN_KEYS, RUN_NEEDED, f"{path}, run {number}")
        for axis, values in run.get("grid", {}).items():
            if not isinstance(values, list):
                raise UserError(f"{path}, run {number}: the axis {axis} of a grid takes a list; got {values!r}")
    return sweep


def _check(node: object, types: dict[str, type], needed: set[str], place: str) -> None:
    """Raise :class:`UserError` unless ``node`` has the ``needed`` keys, and no others than those of ``types``."""
    if not isinstance(node, dict) or needed - set(node):
        raise UserError(f"{place} must have the keys {', '.join(sorted(needed))}")
    for key, value in node.items():
        check_availability(key, types, f"key in {place}:")
        if not isinstance(value, types[key]):
            raise UserError(f"{place}: {key} takes a {types[key].__name__}; got {value!r}")


def cells_of(sweep: dict, output: str, root: str, seeds: list[str], overrides: list[str]) -> list[Cell]:
    """Every combination of every run's grid. ``seeds`` replaces the axis ``seed``."""
    cells = []
    for run in sweep["runs"]:
        grid = run.get("grid", {})
        if seeds and "seed" in grid:
            grid = {**grid, "seed": seeds}
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            folder = Path(output or sweep["output"], _fill(run["folder"], point))
            words = _words(_fill(f"{sweep.get('arguments', '')} {run.get('arguments', '')}", point))
            arguments = ["--output-dir", str(folder), *(["--root", root] if root else []), *words, *overrides]
            cells.append(Cell(folder, tuple(arguments)))
    return cells


def _fill(text: str, point: dict[str, object]) -> str:
    """Put a point of the grid into the ``{axis}`` of a text."""
    try:
        return text.format(**point)
    except (KeyError, IndexError, ValueError) as error:
        axes = ", ".join(point) or "none"
        raise UserError(f'"{text}" names something in braces that is no axis of its grid ({axes})') from error


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"the arguments {text} cannot be split into words: {error}") from error


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


def run_all(cells: list[Cell], jobs: int, threads: int) -> Iterator[tuple[Cell, str | None]]:
    """Do the runs, ``jobs`` at a time; yields each as it ends."""
    if jobs == 1:
        yield from ((cell, run_cell(cell, threads)) for cell in cells)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        futures = {pool.submit(run_cell, cell, threads): cell for cell in cells}
        for future in as_completed(futures):
            broken = isinstance(future.exception(), BrokenProcessPool)
            yield futures[future], "its process was killed (out of memory?)" if broken else future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def report(cells: list[Cell], jobs: int, threads: int) -> list[Cell]:
    """Do the runs that are not finished, with a line for each; returns those that failed."""
    todo = [cell for cell in cells if not cell.finished]
    print(f"{len(cells)} runs, {len(cells) - len(todo)} finished already, {jobs} at a time; transcripts are in log.txt")
    start, failed = time.time(), []
    for number, (cell, error) in enumerate(run_all(todo, jobs, threads), start=1):
        if error:
            failed.append(cell)
            outcome = f"FAILED\n{error}"
        else:
            accuracy = read_record(cell.folder)["accuracy"]
            outcome = "done" if accuracy is None else f"{accuracy:.2f}%"
        print(f"[{number}/{len(todo)}, {time.time() - start:.0f} s] {cell.folder}: {outcome}", flush=True)
    return failed


@command_line("stopped; the same command goes on with the runs that are not finished")
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
    failed = report(cells, jobs, threads)
    if failed:
        print(f"{len(failed)} of {len(cells)} runs failed: {', '.join(str(cell.folder) for cell in failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
