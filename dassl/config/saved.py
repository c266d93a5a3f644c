"""``config.yaml`` in a run's folder: the settings its checkpoints were made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode as CN

from dassl.utils import UserError, atomic_write

from .merge import leaves

FILE = "config.yaml"
# These may change between the parts of one run: they do not touch what is learned.
FREE = (
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.TEST.",
    "DATASET.ROOT",
    "OUTPUT_DIR",
    "RESUME",
    "TEST.",
    "TRAIN.",
    "VERBOSE",
)


def claim_folder(cfg: CN) -> None:
    """Write ``config.yaml`` to the output directory of a run that is about to train.

    Raises:
        UserError: checkpoints of a run with other settings are there, and it would go on from them. RESUME, which
            names a run to go on from, is taken as knowing what one does.
    """
    folder = Path(cfg.OUTPUT_DIR)
    path = folder / FILE
    continues = path.is_file() and any(folder.glob("*/checkpoint")) and not cfg.RESUME
    if continues and (changed := _differences(_read(path), yaml.safe_load(cfg.dump()))):
        raise UserError(
            f"{folder} holds the checkpoints of a run with other settings: {'; '.join(changed)}. Choose another "
            "--output-dir, remove that folder, or go on from that run with --resume"
        )
    with atomic_write(path) as file:
        file.write(cfg.dump())


def _read(path: Path) -> dict:
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}. Remove it and the checkpoints beside it") from error


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    old, new = dict(leaves(old)), dict(leaves(new))
    keys = [key for key in sorted({*old, *new}) if not key.startswith(FREE)]
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
