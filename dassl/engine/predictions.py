"""``predictions.csv`` in a run's folder: the prediction for each image of the evaluation that the record is of."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from torch.utils.data import SequentialSampler

from dassl.utils import atomic_write, relpath

from .record import PREDICTIONS_FILE

COLUMNS = ("", "_class", "_probability")  # of each of the most probable classes, after its rank


def write_predictions(trainer) -> None:
    """Write the predictions of the trainer's latest evaluation to OUTPUT_DIR, with a row for each image of TEST.SPLIT.

    The columns are ``path`` (below DATASET.ROOT, with /), ``label``, ``class`` and ``probability`` (of the label), then
    ``top1``, ``top1_class`` and ``top1_probability``, and so on for the other most probable classes. Probabilities are
    the softmax of the logits. Nothing is written if it is not certain which image a prediction is for: the loader draws
    at random, or the evaluator holds other labels than the split.
    """
    cfg, evaluator = trainer.cfg, trainer.evaluator
    if "accuracy" not in (trainer.results or {}) or not hasattr(evaluator, "top_predictions"):
        return
    loader, predictions = trainer.get_loader(cfg.TEST.SPLIT), evaluator.top_predictions()
    images = getattr(loader.dataset, "data_source", [])
    labels = [item.label for item in images]
    is_ordered = isinstance(getattr(loader.batch_sampler, "sampler", None), SequentialSampler)
    if not is_ordered or labels != evaluator._y_true or len(predictions) != len(images):
        return
    names, root = trainer.lab2cname, os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
    tops = [f"top{rank}{column}" for rank in range(1, 1 + len(predictions[0][1])) for column in COLUMNS]
    with atomic_write(Path(cfg.OUTPUT_DIR, PREDICTIONS_FILE), "wb") as file:
        # A name of a file that is not UTF-8 has lone surrogates, which are written as \udc80.
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "label", "class", "probability", *tops])
        for item, (probability, classes, probabilities) in zip(images, predictions, strict=True):
            path = relpath(item.impath, root).replace(os.sep, "/")
            row = [path, item.label, names.get(item.label, item.label), f"{probability:.6g}"]
            for label, value in zip(classes, probabilities, strict=True):
                row += [label, names.get(label, label), f"{value:.6g}"]
            writer.writerow(row)
        text.flush()
        text.detach()  # atomic_write syncs and closes the file
