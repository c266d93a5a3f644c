"""A sweep as numbered runs, which a scheduler's array jobs do one by one."""

from __future__ import annotations

import itertools

from dassl.utils import UserError, check_at_least
from tools.sweeps.grid import Cell
from tools.sweeps.order import unfinished


def listed(stages: list[list[Cell]]) -> list[str]:
    """A line for each run: number, stage, folder. A run stands behind the one whose model it evaluates."""
    numbers = itertools.count()
    return [f"{next(numbers)}\t{stage}\t{cell.folder}" for stage, cells in enumerate(stages) for cell in cells]


def check(cell: Cell) -> None:
    """Raise :class:`UserError` for what a run's config has wrong, before many tasks wait for their turn to say so."""
    import train

    train.setup_cfg(train.parse_args(list(cell.arguments)))


def arrays_of(stages: list[list[Cell]], size: int) -> list[str]:
    """A line for each array of runs that are not finished: stage, offset, indices as Slurm writes them (0-3,7). A run's
    number is its offset and its index, which is below ``size``."""
    check_at_least(size, 1, "--arrays")
    first, lines = 0, []
    for stage, (cells, todo) in enumerate(zip(stages, unfinished(stages), strict=True)):
        folders = {cell.folder for cell in todo}
        numbers = [number for number, cell in enumerate(cells, start=first) if cell.folder in folders]
        for offset, part in itertools.groupby(numbers, key=lambda number: number - number % size):
            lines.append(f"{stage} {offset} {_ranges([number - offset for number in part])}")
        first += len(cells)
    return lines


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers: [0, 1, 2, 7] -> 0-2,7."""
    runs = [list(run) for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    ends = [(run[0][1], run[-1][1]) for run in runs]
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ends)


def run_one(stages: list[list[Cell]], number: int, threads: int) -> int:
    """Do the run of a number, as ``train.py`` does it, unless it is finished; returns its exit code.

    Raises:
        UserError: there is no such run, or the run whose model it evaluates is not finished.
    """
    cells = list(itertools.chain(*stages))
    if not 0 <= number < len(cells):
        raise UserError(f"there is no run {number}; the sweep's are numbered from 0 to {len(cells) - 1} (--list)")
    cell = cells[number]
    model = next((at for at, other in enumerate(cells) if other.folder == cell.model), None)
    if model is not None and not cells[model].finished:
        raise UserError(f"run {number} evaluates the model of run {model}, {cell.model}, which is not finished")
    if cell.finished:
        print(f"finished already: {cell.folder}")
        return 0
    import torch

    import train

    torch.set_num_threads(threads)
    return train.main(list(cell.arguments))
