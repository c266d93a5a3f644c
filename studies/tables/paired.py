"""The comparison of two methods, paired over seeds and test images, from the predictions of their runs.

The difference d[s, i] of seed s and test image i is 1 if only the first method is correct, -1 if only the second is,
and else 0; with several numbers of shots, the mean over these. Seeds and images are both random samples: another study
draws others. In the two-way crossed random-effects model d[s, i] = mean + seed + image + residual, the variance of the
mean over S seeds and I images is (MS_seed + MS_image - MS_residual) / (S * I), of the mean squares of the analysis of
variance (Searle, Casella and McCulloch, Variance Components, 1992, chapter 4). The interval takes Student's t with
S - 1 degrees of freedom, those of the rarer factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dassl.utils import UserError

from .cells import MIN_TEST_IMAGES, Cell
from .predictions import read_predictions
from .runs import COMPARED, Run


@dataclass(frozen=True)
class Comparison:
    """The paired difference of two methods' accuracies.

    Attributes:
        difference: accuracy of the first minus that of the second, in percentage points.
        half_width: half the width of the 95% interval of ``difference``.
        seeds: number of seeds.
        images: number of test images.
    """

    difference: float
    half_width: float
    seeds: int
    images: int

    @property
    def is_shown(self) -> bool:
        """Whether the interval does not hold 0: one of the methods is more accurate."""
        return abs(self.difference) > self.half_width

    def __str__(self) -> str:
        """Return ``-1.20 ± 0.80 points (95% interval, paired over 3 seeds and 896 test images)``."""
        basis = f"95% interval, paired over {self.seeds} seeds and {self.images:,} test images"
        return f"{self.difference:+.2f} ± {self.half_width:.2f} points ({basis})"


def compare_differences(differences: np.ndarray) -> Comparison:
    """Return the comparison for differences d (seeds, images), at least 2 by 2, as the module's docstring defines."""
    from scipy.special import stdtrit  # quantiles of Student's t; scipy.stats takes a second to import

    seeds, images = differences.shape
    mean = differences.mean()
    by_seed = differences.mean(axis=1, keepdims=True)
    by_image = differences.mean(axis=0, keepdims=True)
    ms_seed = images * ((by_seed - mean) ** 2).sum() / (seeds - 1)
    ms_image = seeds * ((by_image - mean) ** 2).sum() / (images - 1)
    ms_residual = ((differences - by_seed - by_image + mean) ** 2).sum() / ((seeds - 1) * (images - 1))
    # An estimate below the residual's part is sampling error: the components of seeds and images are not negative.
    variance = max(ms_seed + ms_image - ms_residual, ms_residual) / (seeds * images)
    half_width = float(stdtrit(seeds - 1, 0.975)) * math.sqrt(variance)
    return Comparison(100 * float(mean), 100 * half_width, seeds, images)


def compare_cells(first: Mapping[int, Cell], second: Mapping[int, Cell]) -> Comparison | str:
    """Return the comparison of two methods from their cells by shots, or the reason why it cannot be told.

    It is over the shots that both have with a draw for each seed, and the seeds that all these cells have. What
    trains nothing has the same predictions for every seed and number of shots: it is compared at each of the other's.
    """
    pairs = [pair for pair in _pair_cells(first, second) if all(cell.accuracies for cell in pair)]
    if not pairs:
        return "no number of shots has both"
    pairs = [pair for pair in pairs if not any(run.is_one_draw for cell in pair for run in cell.runs)]
    if not pairs:
        return "all seeds share one draw of shots"
    cells = [cell for pair in pairs for cell in pair]
    facts = [run.facts for cell in cells for run in cell.runs]
    if differing := [key for key in sorted(COMPARED) if len({each[key] for each in facts if key in each}) > 1]:
        return f"their {' and '.join(differing)} differ"
    groups = [{run.seed for run in cell.runs} for cell in cells if _is_trained(cell)]
    seeds = sorted(set.intersection(*groups)) if groups else []
    if len(seeds) < 2:
        return "it takes two seeds or more that all these runs share"
    try:
        differences = _read_differences(pairs, seeds)
    except UserError as error:
        return str(error)
    if differences.shape[1] < MIN_TEST_IMAGES:
        return f"{differences.shape[1]} test images are too few; it takes {MIN_TEST_IMAGES}"
    return compare_differences(differences)


def _pair_cells(first: Mapping[int, Cell], second: Mapping[int, Cell]) -> list[tuple[Cell, Cell]]:
    """Return the cells of both methods at the same shots; of one that trains nothing, its cell with each."""
    untrained = [[cell for cell in cells.values() if cell.runs and not _is_trained(cell)] for cells in (first, second)]
    if untrained[0] and not untrained[1]:
        return [(untrained[0][0], cell) for cell in second.values()]
    if untrained[1] and not untrained[0]:
        return [(cell, untrained[1][0]) for cell in first.values()]
    return [(first[shots], second[shots]) for shots in first if shots in second]


def compare_shared_seeds(first: Cell, second: Cell) -> float | None:
    """Return the mean difference in percentage points over the seeds that both cells have; None if there are none."""
    one, other = ({run.seed: run.accuracy for run in cell.runs} for cell in (first, second))
    gaps = [accuracy - other[seed] for seed, accuracy in one.items() if seed in other]
    return sum(gaps) / len(gaps) if gaps else None


def _read_differences(pairs: Sequence[tuple[Cell, Cell]], seeds: Sequence[int]) -> np.ndarray:
    """Return d (seeds, images), the mean over ``pairs``, the two methods' cells for each number of shots.

    Raises:
        UserError: a run has no predictions, or they are for other images than those of another run.
    """
    rows, expected = [], None
    for seed in seeds:
        differences = []
        for pair in pairs:
            first, second = (_choose_run(cell, seed) for cell in pair)
            one, other = read_predictions(first), read_predictions(second)
            expected = expected or one.images
            if not one.images == other.images == expected:
                raise UserError(f"the predictions in {first.folder} and {second.folder} are for other images")
            differences.append(one.correct.astype(float) - other.correct)
        rows.append(np.mean(differences, axis=0))
    return np.stack(rows)


def _is_trained(cell: Cell) -> bool:
    """Return whether the cell is of a method whose result depends on the seed and the shots."""
    return any(run.is_trained for run in cell.runs)


def _choose_run(cell: Cell, seed: int) -> Run:
    """Return the run of ``seed``; of a method that trains nothing, the first if there is none of that seed."""
    return next((run for run in cell.runs if run.seed == seed), cell.runs[0])
