"""``config.yaml`` in a run's folder: the settings its checkpoints were made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode as CN

from dassl.utils import UserError, error_reason

from .merge import flatten, read_yaml

CONFIG_FILE = "config.yaml"
# A resumed run may change these keys, as nothing that is learned depends on them. A trailing dot means the whole node.
RESUMABLE_KEYS = (
    *("OUTPUT_DIR", "RESUME", "FORCE_RESUME", "VERBOSE", "TEST.", "DATALOADER.NUM_WORKERS", "DATALOADER.TEST."),
    *("DATASET.ROOT", "DATASET.FOLLOW_LINKS", "DATASET.SKIP_BAD_IMAGES", "MODEL.BACKBONE.ACTIVATIONS_GB"),
    *("FEATURES.CACHE_DIR", "FEATURES.ENABLED", "FEATURES.MAX_GB", "TRAIN.CHECKPOINT_FREQ", "TRAIN.KEEP_CHECKPOINTS"),
    *("TRAIN.CHECKPOINT_MINUTES", "TRAIN.CUDA_GRAPH", "TRAIN.PRINT_FREQ"),
)


def find_resume_conflicts(cfg: CN, defaults: CN) -> tuple[list[str], bool]:
    """Return why a run may not go on from the checkpoints that it finds, and whether its own folder has some.

    Args:
        defaults: of every key. One that the version of an earlier run did not have yet had the effect of its default.

    Raises:
        UserError: RESUME names a folder without checkpoints.
    """
    folder, source = Path(cfg.OUTPUT_DIR), Path(cfg.RESUME or cfg.OUTPUT_DIR)
    has_own, is_own = _has_checkpoints(folder), source.resolve() == folder.resolve()
    if cfg.RESUME and not _has_checkpoints(source):
        raise UserError(f"there is no checkpoint to resume from in {cfg.RESUME}")
    if not has_own and not cfg.RESUME:
        return [], False
    settings = Path(folder if has_own else source, CONFIG_FILE)
    if not settings.is_file():  # runs of the original have none
        problem = f"{folder} holds checkpoints, but no {CONFIG_FILE} that tells their settings"
        return [problem] if has_own and not (cfg.RESUME and is_own) else [], has_own
    then = _read_config(settings)
    if has_own and not is_own and source.resolve() != Path(then.get("RESUME") or folder).resolve():
        return [f"{folder} holds the checkpoints of a run that did not go on from {cfg.RESUME}"], True
    changed = _diff(then, yaml.safe_load(cfg.dump()), defaults)
    problem = f"{settings.parent} holds the checkpoints of a run with other settings: {'; '.join(changed)}"
    return [problem] if changed else [], has_own


def diff_configs(then: str, now: str, defaults: CN) -> list[str]:
    """Return what differs between two dumped configs, but for what does not touch what is learned.

    ``defaults``: as for :func:`find_resume_conflicts`. :class:`UserError` where a dump is damaged.
    """
    try:
        return _diff(yaml.safe_load(then), yaml.safe_load(now), defaults)
    except (yaml.YAMLError, AttributeError) as error:
        raise UserError(f"the settings in the checkpoint are damaged: {error_reason(error)}") from error


def read_run_seed(*folders: str) -> int | None:
    """The seed of the first run in ``folders``, which the same command without a seed goes on with; None if there is
    none."""
    for run in (Path(folder) for folder in folders if folder):
        if _has_checkpoints(run) and (run / CONFIG_FILE).is_file():
            return _read_config(run / CONFIG_FILE).get("SEED")
    return None


def _has_checkpoints(folder: Path) -> bool:
    return any(folder.glob("*/checkpoint"))


def _read_config(path: Path) -> dict:
    try:
        return dict(read_yaml(path))
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}. Remove it and the checkpoints beside it") from error


def _diff(old: dict[str, Any], new: dict[str, Any], defaults: CN) -> list[str]:
    known, new = dict(flatten(yaml.safe_load(defaults.dump()))), dict(flatten(new))
    old = {**{key: value for key, value in known.items() if key in new}, **dict(flatten(old))}
    keys = [key for key in sorted({*old, *new}) if not key.startswith(RESUMABLE_KEYS)]
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
