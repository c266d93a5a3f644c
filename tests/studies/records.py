"""Runs as files: the records, logs and predictions that the tables read, without training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from dassl.config import get_cfg_default, to_dict

TRAINED = "Finish training\nFinished training\n=> result\n* accuracy: {:.2f}%\n"
ZERO_SHOT = ("ZeroshotCLIP", "ZeroshotCLIP2")
SHA = {"a": "a" * 64, "b": "b" * 64}


def build_record(accuracy=70.0, trainer="CoOp", seed=1, shots=16, config_file="tiny", config=None, **entries) -> dict:
    """Return a record whose ``config`` has these values by dotted key; ``entries`` of None are left out."""
    nodes = to_dict(get_cfg_default())
    nodes["TRAINER"]["NAME"] = trainer
    if trainer == "CoOp":
        nodes["TRAINER"]["COOP"] = {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "CLASS_TOKEN_POSITION": "end"}
    for key, value in {"SEED": seed, "DATASET.NUM_SHOTS": shots, **(config or {})}.items():
        *path, name = key.split(".")
        node = nodes
        for part in path:
            node = node.setdefault(part, {})
        node[name] = value
    record = {
        "accuracy": accuracy,
        "correct": round(accuracy * 10),
        "total": 1000,
        "split": "test",
        "trainer": trainer,
        "dataset": "Digits",
        "seed": seed,
        "models": [] if trainer in ZERO_SHOT else ["model"],
        "train_images_per_class": [shots, shots] if shots > 0 else [40, 41],
        "trainable_parameters": 0 if trainer in ZERO_SHOT else 2048,
        "weights": {"backbone": "RN50", "file": "", "sha256": SHA["a"]},
        "classnames": ["cat", "dog"],
        "splits": {"test": {"images": 1000, "sha256": SHA["a"]}},
        "machine": {},
        "command": ["--trainer", trainer, "--config-file", f"configs/{config_file}.yaml"],
        "config": nodes,
        **entries,
    }
    return {key: value for key, value in record.items() if value is not None}


def write_run(folder: Path, accuracy=70.0, **record) -> Path:
    """Write a finished run, with a record of ``build_record``, into ``folder``; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text(TRAINED.format(accuracy), encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(build_record(accuracy, **record)), encoding="utf-8")
    return folder


def write_predictions(folder: Path, correct: np.ndarray) -> None:
    """Write the predictions of a run of two classes; image i is correct where ``correct`` (images,) is True."""
    with open(folder / "predictions.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "class", "probability", "top1", "top1_class", "top1_probability"])
        for number, is_correct in enumerate(correct):
            writer.writerow([f"digits/{number}.png", 0, "cat", 0.5, int(not is_correct), "", 0.5])


def read_csv(folder: Path, name="results") -> dict[str, list[str]]:
    """Return the cells of a table's CSV file by row."""
    return {row: cells for row, *cells in csv.reader((folder / f"{name}.csv").open(encoding="utf-8"))}
