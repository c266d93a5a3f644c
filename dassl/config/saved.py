"""``config.yaml`` in a run's folder: the settings its checkpoints were made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode as CN

from dassl.utils import UserError, atomic_write

from .defaults import get_cfg_default
from .merge import leaves

FILE = "config.yaml"
# These may change between the parts of one run: they do not touch what is learned.
FREE = (
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.TEST.",
    "DATASET.ROOT",
    "FEATURES.CACHE_DIR",
    "FEATURES.ENABLED",
    "FEATURES.MAX_GB",
    "MODEL.BACKBONE.ACTIVATIONS_GB",
    "OUTPUT_DIR",
    "RESUME",
    "TEST.",
    "TRAIN.",
    "VERBOSE",
)


def claim_folder(cfg: CN) -> None:
    """Write ``config.yaml`` to the output directory of a run that is about to train.

    Raises:
        UserError: the run would go on from checkpoints of a run with other settings, or of unknown ones. RESUME,
            which names a run to go on from, is taken as knowing what one does; it must hold checkpoints, and the
            output directory none but its own.
    """
    folder = Path(cfg.OUTPUT_DIR)
    path = folder / FILE
    if cfg.RESUME and not _has_checkpoints(Path(cfg.RESUME)):
        raise UserError(f"there is no checkpoint to resume from in {cfg.RESUME}")
    if _has_checkpoints(folder) and folder.resolve() != Path(cfg.RESUME or "/").resolve():
        _check_same_settings(folder, cfg)
    with atomic_write(path) as file:
        file.write(cfg.dump())


def seed_of_run(folder: str) -> int | None:
    """The seed of the run in ``folder``, which the same command without a seed goes on with; None if there is none."""
    path = Path(folder, FILE)
    return _read(path).get("SEED") if path.is_file() and _has_checkpoints(path.parent) else None


def _has_checkpoints(folder: Path) -> bool:
    return any(folder.glob("*/checkpoint"))


def _check_same_settings(folder: Path, cfg: CN) -> None:
    mend = "Choose another --output-dir, remove that folder, or go on from that run with --resume"
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} holds checkpoints, but no {FILE} that tells their settings. {mend}")
    saved = _read(folder / FILE)
    if cfg.RESUME and saved.get("RESUME") != cfg.RESUME:
        raise UserError(f"{folder} holds the checkpoints of a run that did not go on from {cfg.RESUME}. {mend}")
    if changed := _differences(saved, yaml.safe_load(cfg.dump())):
        raise UserError(f"{folder} holds the checkpoints of a run with other settings: {'; '.join(changed)}. {mend}")


def _read(path: Path) -> dict:
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}. Remove it and the checkpoints beside it") from error


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    # A key that the version of the earlier run did not have yet had the effect of its default.
    defaults = dict(leaves(yaml.safe_load(get_cfg_default().dump())))
    old, new = {**defaults, **dict(leaves(old))}, dict(leaves(new))
    keys = [key for key in sorted({*old, *new}) if not key.startswith(FREE)]
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
