"""Which runs of a sweep come before which, and which of them are to be done."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from dassl.utils import UserError
from tools.sweeps.grid import Cell

Ended = Iterator[tuple[Cell, str | None]]  # runs that have ended: None, or what went wrong


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


def run_stages(stages: list[list[Cell]], run_all: Callable[[list[Cell]], Ended]) -> Ended:
    """Do the runs stage by stage, but none whose model's run failed; yields each as ``run_all`` does, which does runs
    that do not wait for one another."""
    failed: set[Path] = set()
    for stage in stages:
        lost = [(cell, f"not started: its model's run failed, {cell.model}") for cell in stage if cell.model in failed]
        ready = [cell for cell in stage if cell.model not in failed]
        for cell, error in itertools.chain(lost, run_all(ready)):
            if error:
                failed.add(cell.folder)
            yield cell, error
