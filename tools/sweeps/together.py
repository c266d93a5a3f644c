"""The runs of a sweep in one process, where those that can share the text encoder's passes."""

from __future__ import annotations

from functools import partial

from tools.sweeps.grid import Cell
from tools.sweeps.local import run_cell
from tools.sweeps.order import Ended

AT_ONCE = 8  # runs, unless --jobs says another number


def run_all(cells: list[Cell], most: int, threads: int) -> Ended:
    """Do the runs, ``most`` at a time; yields each as it ends, with what went wrong (see :mod:`trainers.together`)."""
    import torch

    from trainers.together import run_together

    torch.set_num_threads(threads)  # of this thread, which computes what is shared
    for number, error in run_together((partial(run_cell, cell, threads) for cell in cells), most):
        yield cells[number], error
