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
import re
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import pairwise
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
SEED_AXES = ("seed", "SEED")  # what --seeds replaces
OUTPUT = "output"  # in the braces of arguments: the sweep's folder
BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")  # str.format's, but a dot is part of the name


@dataclass(frozen=True)
class Cell:
    """One run of the grid: its folder, and the arguments for ``train.py``."""

    folder: Path
    arguments: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether its folder holds the record of a run with these very arguments."""
        return is_finished(self.folder, self.arguments)

    @property
    def model(self) -> Path | None:
        """The folder of the run whose model it evaluates."""
        return next((Path(folder) for flag, folder in pairwise(self.arguments) if flag == "--model-dir"), None)


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
    """Every combination of every run's grid. ``seeds`` replaces the axis ``seed`` (or ``SEED``).

    Raises:
        UserError: braces that name no axis, two runs with one folder, an override of an axis, an axis ``output``.
    """
    cells: dict[Path, Cell] = {}
    output = str(Path(output or sweep["output"]))
    for run in sweep["runs"]:
        axes = run.get("grid", {}).items()
        grid = {str(axis): seeds if seeds and axis in SEED_AXES else values for axis, values in axes}
        if fixed := [key for key in overrides[::2] if key in grid]:
            raise UserError(f"{fixed[0]} is an axis of the grid of {run['folder']}, so it cannot be set for every run")
        if OUTPUT in grid:
            raise UserError(f"{{{OUTPUT}}} is the sweep's folder; give that axis of {run['folder']} another name")
        words = _words(f"{sweep.get('arguments', '')} {run.get('arguments', '')}")
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, map(str, values), strict=True))
            folder = Path(output, _fill(run["folder"], point))
            if folder in cells:
                raise UserError(f"two runs have the folder {folder}; {_mend(run['folder'], grid)}")
            keys = [word for axis, value in point.items() if _is_key(axis) for word in (axis, value)]
            arguments = ["--output-dir", str(folder), *(["--root", root] if root else [])]
            arguments += [*(_fill(word, {**point, OUTPUT: output}) for word in words), *keys, *overrides]
            cells[folder] = Cell(folder, tuple(arguments))
    return list(cells.values())


def _is_key(axis: str) -> bool:
    """Whether an axis is named as config keys are."""
    return "." in axis or axis.isupper()


def _fill(text: str, point: dict[str, str]) -> str:
    """Put a point of the grid into the ``{axis}`` of a text; ``{{`` and ``}}`` are plain braces."""

    def value(match: re.Match) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] not in point:
            axes = ", ".join(point) or "none"
            raise UserError(f'"{text}" names something in braces that is no axis of its grid ({axes})')
        return point[match[1]]

    return BRACES.sub(value, text)


def _mend(folder: str, grid: dict[str, list]) -> str:
    """What to do about a ``folder`` that does not tell the runs of its ``grid`` apart."""
    named = {match[1] for match in BRACES.finditer(folder)}
    absent = [f"{{{axis}}}" for axis, values in grid.items() if len(values) > 1 and axis not in named]
    if absent:
        return f'put {" and ".join(absent)} into "{folder}"'
    return f'"{folder}" is there twice, or a value of its grid is'


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


def report(cells: list[Cell], jobs: int, threads: int) -> list[Cell]:
    """Do the runs that are not finished, with a line for each; returns those that failed."""
    stages = unfinished(in_stages(cells))
    todo = list(itertools.chain(*stages))
    print(f"{len(cells)} runs, {len(cells) - len(todo)} finished already, {jobs} at a time; transcripts are in log.txt")
    start, failed = time.time(), []
    for number, (cell, error) in enumerate(run_stages(stages, jobs, threads), start=1):
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
