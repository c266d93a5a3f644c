"""What the predictions of runs show: accuracy of each class, confusions, calibration, and confident mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from studies.tables.predictions import Predictions

BINS = 15  # of the confidence, of equal width: as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017


class Mistake(NamedTuple):
    """A wrong prediction: image, seed, true class, most probable classes; ``wrong_seeds`` counts the seeds with one."""

    path: str
    seed: int
    truth: str
    top: list[tuple[str, float]]
    wrong_seeds: int


def count_pairs(runs: Sequence[Predictions]) -> Counter[tuple[int, int]]:
    """Return how many images of a class (first) were taken for a class (second), summed over the runs."""
    return Counter(pair for run in runs for pair in zip(run.labels.tolist(), run.classes[:, 0].tolist(), strict=True))


def compute_class_accuracies(run: Predictions, classes: int) -> np.ndarray:
    """Return the accuracy of each class in percent; NaN for a class without test images."""
    totals, hits = np.bincount(run.labels, minlength=classes), np.bincount(run.labels, run.correct, classes)
    return np.where(totals, 100 * hits / np.maximum(totals, 1), np.nan)


def compute_calibration(runs: Sequence[Predictions]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[float]]:
    """Return the calibration of the most probable class's probability, in BINS bins (low, high] of equal width.

    Of the predictions of all runs in each bin: their number, their accuracy and their mean confidence, both in percent
    and NaN in an empty bin. Then the expected calibration error of each run, in points: the sum over bins of the share
    of its images in the bin times the distance between their accuracy and their mean confidence.
    """
    sums, errors = [], []
    for run in runs:
        confidence = run.probabilities[:, 0]
        bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        counts, correct, total = (np.bincount(bins, weights, BINS) for weights in (None, run.correct, confidence))
        errors.append(100 * float(np.abs(correct - total).sum()) / len(bins))
        sums.append((counts, correct, total))
    counts, correct, total = np.sum(sums, axis=0)
    with np.errstate(invalid="ignore"):
        return counts.astype(int), 100 * correct / counts, 100 * total / counts, errors


def find_mistakes(runs: Mapping[int, Predictions], names: Sequence[str], limit: int) -> list[Mistake]:
    """Return the ``limit`` images with the most confident mistakes of runs by seed; ``names`` are those of the classes.

    An image that several seeds got wrong is in the list once, with the most confident one.
    """
    wrong = [(-r.probabilities[i, 0], s, int(i)) for s, r in runs.items() for i in np.flatnonzero(~r.correct)]
    counts = Counter(runs[seed].images[i] for _, seed, i in wrong)
    first: dict[tuple[str, str], tuple[int, int]] = {}
    for _, seed, i in sorted(wrong):
        first.setdefault(runs[seed].images[i], (seed, i))
    mistakes = []
    for image, (seed, i) in [*first.items()][:limit]:
        run = runs[seed]
        top = [(names[c], float(p)) for c, p in zip(run.classes[i], run.probabilities[i], strict=True)]
        mistakes.append(Mistake(image[0], seed, names[run.labels[i]], top, counts[image]))
    return mistakes
