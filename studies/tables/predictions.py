"""Predictions of runs (``predictions.csv``) as arrays. A file is read once, as long as it does not change."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from dassl.engine.record import PREDICTIONS_FILE
from dassl.utils import UserError

from .runs import Run

_IMAGES: dict[tuple, tuple] = {}  # one tuple for all runs of a study, which have the same test images


@dataclass(frozen=True)
class Predictions:
    """The predictions of a run, in the order of its test images.

    ``images`` are (path below DATASET.ROOT, label as text), ``labels`` (images,), ``classes`` (images, ranks) the most
    probable classes in descending order, and ``probabilities`` (images, ranks) theirs.
    """

    images: tuple[tuple[str, str], ...]
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether each image's most probable class is its label, as booleans (images,)."""
        return self.labels == self.classes[:, 0]


def read_predictions(run: Run) -> Predictions:
    """Return a run's predictions; UserError if there are none that can be read, or they are not those of the record."""
    path = run.folder / PREDICTIONS_FILE
    try:
        stat = path.stat()
        predictions = _read_file(path, stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError as error:
        raise UserError(f"{run.folder} has no {PREDICTIONS_FILE}") from error
    except (OSError, KeyError, ValueError, OverflowError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if (len(predictions.labels), predictions.correct.sum()) != (run.record.get("total"), run.record.get("correct")):
        raise UserError(f"{path} does not have the results of the record beside it")
    return predictions


@lru_cache(maxsize=1024)  # files: more than the runs of a study
def _read_file(path: Path, time: int, size: int) -> Predictions:
    """Return the predictions in a file last changed at ``time`` with ``size`` bytes."""
    with open(path, encoding="utf-8", newline="") as file:
        heads, *rows = [*csv.reader(file)] or [[]]
    ranks = [head for head in heads if head.startswith("top") and f"{head}_probability" in heads]
    if not (ranks and rows) or any(len(row) != len(heads) for row in rows):
        raise ValueError("it is cut, or lacks columns")
    columns = dict(zip(heads, zip(*rows, strict=True), strict=True))
    images = tuple(zip(columns["path"], columns["label"], strict=True))
    classes = np.array([columns[rank] for rank in ranks], dtype=int).T
    probabilities = np.array([columns[f"{rank}_probability"] for rank in ranks], dtype=float).T
    labels = np.array(columns["label"], dtype=int)
    if min(labels.min(), classes.min()) < 0 or not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("a label is negative, or a probability is not from 0 to 1")
    return Predictions(_IMAGES.setdefault(images, images), labels, classes, probabilities)
