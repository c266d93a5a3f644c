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


@dataclass(frozen=True)
class Predictions:
    """The predictions of a run, in the order of its test images.

    Attributes:
        images: the path below DATASET.ROOT and the label (as text) of each image.
        labels: (images,) labels.
        classes: (images, ranks) the most probable classes, in descending order.
        probabilities: (images, ranks) their probabilities.
        names: class names by label, as far as they are in the file.
    """

    images: tuple[tuple[str, str], ...]
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    names: dict[int, str]

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether each image's most probable class is its label, as booleans (images,)."""
        return self.labels == self.classes[:, 0]


def read_predictions(run: Run) -> Predictions:
    """Return the predictions of a run.

    Raises:
        UserError: there are none, they cannot be read, or they are not those of the record.
    """
    path = run.folder / PREDICTIONS_FILE
    try:
        stat = path.stat()
        predictions = _read_file(path, stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError as error:
        raise UserError(f"{run.folder} has no {PREDICTIONS_FILE}") from error
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if (len(predictions.labels), predictions.correct.sum()) != (run.record.get("total"), run.record.get("correct")):
        raise UserError(f"{path} does not have the results of the record beside it")
    return predictions


_IMAGES: dict[tuple, tuple] = {}  # one tuple for all runs of a study, which have the same test images


@lru_cache(maxsize=1024)  # files: more than the runs of a study
def _read_file(path: Path, time: int, size: int) -> Predictions:
    """Return the predictions in a file last changed at ``time`` with ``size`` bytes."""
    with open(path, encoding="utf-8", newline="") as file:
        heads, *rows = csv.reader(file)
    if not rows:
        raise ValueError("it has no rows")
    columns = dict(zip(heads, zip(*rows, strict=True), strict=True))
    ranks = [
        head.removesuffix("_probability") for head in heads if head.startswith("top") and head.endswith("_probability")
    ]
    images, labels = tuple(zip(columns["path"], columns["label"], strict=True)), np.array(columns["label"], dtype=int)
    classes = np.array([columns[rank] for rank in ranks], dtype=int).T
    probabilities = np.array([columns[f"{rank}_probability"] for rank in ranks], dtype=float).T
    names = {int(label): name for label, name in zip(columns["label"], columns["class"], strict=True)}
    return Predictions(_IMAGES.setdefault(images, images), labels, classes, probabilities, names)
