"""``config.yaml`` in a run's folder: the settings its checkpoints were made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode as CN

from dassl.utils import UserError

from .merge import leaves, read_yaml

FILE = "config.yaml"
# These may change between the parts of one run: they do not touch what is learned.
FREE = ("OUTPUT_DIR", "RESUME", "FORCE_RESUME", "VERBOSE", "TEST.", "DATALOADER.NUM_WORKERS", "DATALOADER.TEST.")
FREE += ("DATASET.ROOT", "DATASET.FOLLOW_LINKS", "DATASET.SKIP_BAD_IMAGES", "MODEL.BACKBONE.ACTIVATIONS_GB")
FREE += ("FEATURES.CACHE_DIR", "FEATURES.ENABLED", "FEATURES.MAX_GB", "TRAIN.CHECKPOINT_FREQ", "TRAIN.KEEP_CHECKPOINTS")
FREE += ("TRAIN.CHECKPOINT_MINUTES", "TRAIN.CUDA_GRAPH", "TRAIN.PRINT_FREQ")


def objections_to_resume(cfg: CN, defaults: CN) -> tuple[list[str], bool]:
    """Return why a run may not go on from the checkpoints that it finds, and whether its own folder has some.

    Args:
        defaults: of every key. One that the version of an earlier run did not have yet had the effect of its default.

    Raises:
        UserError: RESUME names a folder without checkpoints.
    """
    folder, source = Path(cfg.OUTPUT_DIR), Path(cfg.RESUME or cfg.OUTPUT_DIR)
    if cfg.RESUME and not _has_checkpoints(source):
        raise UserError(f"there is no checkpoint to resume from in {cfg.RESUME}")
    if _has_checkpoints(folder):
        return _objections(folder, cfg, defaults), True
    if cfg.RESUME and (source / FILE).is_file():  # runs of the original have none
        return _other_settings(source, cfg, defaults), False
    return [], False


def changed_settings(then: str, now: str, defaults: CN) -> list[str]:
    """What differs between two dumped configs, but for what does not touch what is learned.

    ``defaults``: as for :func:`objections_to_resume`.

    Raises:
        ValueError: one of them is damaged.
    """
    try:
        return _differences(yaml.safe_load(then), yaml.safe_load(now), defaults)
    except (yaml.YAMLError, AttributeError) as error:
        raise ValueError(f"no settings: {error}") from error


def seed_of_run(*folders: str) -> int | None:
    """The seed of the first run in ``folders``, which the same command without a seed goes on with; None if there is
    none."""
    runs = (Path(folder) for folder in folders if folder)
    return next(
        (_read(run / FILE).get("SEED") for run in runs if _has_checkpoints(run) and (run / FILE).is_file()), None
    )


def _has_checkpoints(folder: Path) -> bool:
    return any(folder.glob("*/checkpoint"))


def _objections(folder: Path, cfg: CN, defaults: CN) -> list[str]:
    """Why the run may not go on from the checkpoints in its own output directory."""
    source = Path(cfg.RESUME or folder).resolve()
    if not (folder / FILE).is_file():
        asked_for = cfg.RESUME and source == folder.resolve()
        return [] if asked_for else [f"{folder} holds checkpoints, but no {FILE} that tells their settings"]
    begun_from = Path(_read(folder / FILE).get("RESUME") or folder).resolve()
    if source not in (folder.resolve(), begun_from):
        return [f"{folder} holds the checkpoints of a run that did not go on from {cfg.RESUME}"]
    return _other_settings(folder, cfg, defaults)


def _other_settings(folder: Path, cfg: CN, defaults: CN) -> list[str]:
    changed = _differences(_read(folder / FILE), yaml.safe_load(cfg.dump()), defaults)
    return [f"{folder} holds the checkpoints of a run with other settings: {'; '.join(changed)}"] if changed else []


def _read(path: Path) -> dict:
    try:
        return dict(read_yaml(path))
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}. Remove it and the checkpoints beside it") from error


def _differences(old: dict[str, Any], new: dict[str, Any], defaults: CN) -> list[str]:
    known, new = dict(leaves(yaml.safe_load(defaults.dump()))), dict(leaves(new))
    old = {**{key: value for key, value in known.items() if key in new}, **dict(leaves(old))}
    keys = [key for key in sorted({*old, *new}) if not key.startswith(FREE)]
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
