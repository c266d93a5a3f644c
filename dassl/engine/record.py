"""The record of a finished run: what it gave and what it was, for programs."""

from __future__ import annotations

from pathlib import Path

from dassl import __version__
from dassl.config import to_dict
from dassl.utils import package_versions, write_json
from dassl.utils.results import RECORD

from .trainer import SimpleTrainer


def write_record(trainer: SimpleTrainer, seconds: float, command: list[str]) -> None:
    """Write the record of a run that has come to its end; its presence is what tells a finished run.

    ``command`` is what ``train.py`` was called with. ``trainer.describe()`` may add entries, such as the fingerprint of
    the weights it started from.
    """
    cfg = trainer.cfg
    record = {
        **(trainer.results or {"accuracy": None}),
        "split": cfg.TEST.SPLIT,
        "trainer": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "seed": cfg.SEED,
        "trainable_parameters": trainer.trainable_parameters(),
        **trainer.describe(),
        "seconds": round(seconds, 2),
        "versions": {"dassl": __version__, **package_versions()},
        "command": command,
        "config": to_dict(cfg),
    }
    write_json(record, Path(cfg.OUTPUT_DIR, RECORD))
