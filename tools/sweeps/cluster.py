"""The runs of a sweep as tasks of Ray (see :mod:`tools.clusters.tasks`).

The CLIP of several runs, and the features of the images that they are tested on, are made once and lie in the object
store of each node once (:mod:`tools.sweeps.sharing`); other features are shared through the cache on disk. A run that
was lost with its node goes on from its checkpoints.
"""

from __future__ import annotations

from collections import Counter

from tools.clusters import tasks
from tools.sweeps.grid import Cell
from tools.sweeps.local import run_cell
from tools.sweeps.order import Ended


class OnRay:
    """Does runs on the cluster that is connected."""

    def __init__(self, cells: list[Cell], need: tasks.Need, at_once: int, threads: int):
        """``cells`` are all that are to be done; ``at_once`` of 0: as many as the nodes hold."""
        from tools.sweeps.sharing import wish_of

        self.need, self.at_once, self.threads = need, at_once, threads
        self.wishes = {cell.folder: wish for cell in cells if (wish := wish_of(cell))}
        wishes = self.wishes.values()
        self.wanted = Counter(wish.weights for wish in wishes) + Counter(wish.features for wish in wishes)
        self.made: dict[str, object] = {}  # references, by what was wished

    def __call__(self, cells: list[Cell]) -> Ended:
        """Do the runs; yields each as it ends."""
        for cell, result, error in tasks.run(run_there, cells, self.need, self.at_once, self._arguments):
            yield cell, error or result

    def _arguments(self, cell: Cell) -> tuple:
        return cell, self.threads, *self._shared(cell)

    def _shared(self, cell: Cell) -> list:
        """References to what the run has in common with others, which is made by the first that needs it."""
        from tools.sweeps.sharing import share_features, share_weights

        wish = self.wishes.get(cell.folder)
        if wish is None or self.wanted[wish.weights] == 1:
            return []
        if wish.weights not in self.made:
            seeds = sorted({other.seed for other in self.wishes.values() if other.weights == wish.weights})
            self.made[wish.weights] = self._make(share_weights, cell, seeds)
        if self.wanted[wish.features] > 1 and wish.features not in self.made:
            self.made[wish.features] = self._make(share_features, cell, self.made[wish.weights])
        return [self.made[key] for key in (wish.weights, wish.features) if key in self.made]

    def _make(self, share, cell: Cell, what):
        return tasks.start(share, cell, what, self.threads, need=self.need)


def run_there(cell: Cell, threads: int, *shared) -> str | None:
    """Do one run, as :func:`run_cell` does, unless a task that was lost has finished it."""
    from tools.sweeps.sharing import take

    if cell.finished:
        return None
    take(*shared)
    tasks.wait_for(cell.folder)
    return run_cell(cell, threads)
