"""What the predictions of runs show: accuracy of each class, confusions, calibration, and confident mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from studies.tables.predictions import Predictions

BINS = 15  # of the confidence, of equal width: as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017


@dataclass(frozen=True)
class Calibration:
    """The reliability diagram of runs, and their expected calibration error.

    Attributes:
        counts: (BINS,) predictions of all runs in each bin of confidence.
        accuracy: (BINS,) their accuracy in percent; NaN in an empty bin.
        confidence: (BINS,) their mean confidence in percent; NaN in an empty bin.
        errors: the expected calibration error of each run, in percentage points.
    """

    counts: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray
    errors: list[float]


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction: its image, its seed, the true class, and the most probable classes with probabilities."""

    path: str
    seed: int
    truth: str
    top: list[tuple[str, float]]
    wrong_seeds: int


def compute_confusion(runs: Sequence[Predictions], classes: int) -> np.ndarray:
    """Return how many images of each class (rows) were taken for each class (columns), summed over the runs."""
    counts = np.zeros((classes, classes), dtype=int)
    for run in runs:
        np.add.at(counts, (run.labels, run.classes[:, 0]), 1)
    return counts


def compute_class_accuracy(runs: Sequence[Predictions], classes: int) -> np.ndarray:
    """Return the accuracy of each class in percent, the mean over runs; NaN for a class without test images."""
    shares = []
    for run in runs:
        totals = np.bincount(run.labels, minlength=classes)
        correct = np.bincount(run.labels[run.correct], minlength=classes)
        shares.append(np.where(totals, 100 * correct / np.maximum(totals, 1), np.nan))
    return np.mean(shares, axis=0)


def compute_calibration(runs: Sequence[Predictions]) -> Calibration:
    """Return the calibration of the most probable class's probability, in BINS bins (low, high] of equal width.

    The expected calibration error of a run is the sum over bins of the share of its images in the bin times the
    distance between their accuracy and their mean confidence.
    """
    sums, errors = [], []
    for run in runs:
        confidence = run.probabilities[:, 0]
        bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        counts, correct, total = (np.bincount(bins, w, BINS) for w in (None, run.correct, confidence))
        errors.append(100 * float(np.abs(correct - total).sum()) / len(bins))
        sums.append((counts, correct, total))
    counts, correct, total = np.sum(sums, axis=0)
    with np.errstate(invalid="ignore"):
        return Calibration(counts.astype(int), 100 * correct / counts, 100 * total / counts, errors)


def find_mistakes(runs: dict[int, Predictions], names: Sequence[str], limit: int) -> list[Mistake]:
    """Return the ``limit`` images with the most confident mistakes, each once, of runs by seed.

    ``names`` are the classes' names. An image that several seeds got wrong shows the most confident one.
    """
    found: dict[str, tuple[float, int, int]] = {}
    wrong: dict[str, int] = {}
    for seed, run in runs.items():
        for index in np.flatnonzero(~run.correct):
            path, confidence = run.images[index][0], float(run.probabilities[index, 0])
            wrong[path] = wrong.get(path, 0) + 1
            if confidence > found.get(path, (-1.0,))[0]:
                found[path] = confidence, seed, int(index)
    mistakes = []
    for path, (_, seed, index) in sorted(found.items(), key=lambda item: (-item[1][0], item[0]))[:limit]:
        run = runs[seed]
        top = [(names[c], float(p)) for c, p in zip(run.classes[index], run.probabilities[index], strict=True)]
        mistakes.append(Mistake(path, seed, names[run.labels[index]], top, wrong[path]))
    return mistakes
