"""``config.yaml`` in a run's folder: the config that its checkpoints were made with, and comparing it to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode as CN

from dassl.utils import UserError, error_reason

from .merge import flatten, read_yaml

CONFIG_FILE = "config.yaml"
Changes = dict[str, tuple[Any, Any]]  # the value of a key in one config and in another, by the key
# Keys that a resumed run may change, as the trained parameters do not depend on them. "TEST." is a whole node. For
# DECODING_KEYS, the images that they change are compared instead.
DECODING_KEYS = ("INPUT.WHITE_LEVEL", "INPUT.ORIENTATION")
RESUMABLE_KEYS = (
    *("OUTPUT_DIR", "RESUME", "FORCE_RESUME", "VERBOSE", "TEST.", "DATALOADER.NUM_WORKERS", "DATALOADER.TEST."),
    *("DATASET.ROOT", "DATASET.FOLLOW_LINKS", "DATASET.SKIP_BAD_IMAGES", "MODEL.BACKBONE.ACTIVATIONS_GB"),
    *("FEATURES.CACHE_DIR", "FEATURES.ENABLED", "FEATURES.MAX_GB", "TRAIN.CHECKPOINT_FREQ", "TRAIN.KEEP_CHECKPOINTS"),
    *("TRAIN.CHECKPOINT_MINUTES", "TRAIN.CUDA_GRAPH", "TRAIN.LOGGERS", "TRAIN.PRINT_FREQ", *DECODING_KEYS),
)


def find_resume_conflicts(cfg: CN, defaults: CN) -> tuple[list[str], bool]:
    """Return why a run of ``cfg`` may not resume, and whether OUTPUT_DIR holds checkpoints; at most one reason.

    The run resumes from OUTPUT_DIR if it holds checkpoints, else from RESUME. A key that is missing in the
    saved config, of an earlier version, has its value in ``defaults``. Raises ``UserError`` if RESUME holds no
    checkpoints, or the saved config is damaged.
    """
    folder, source = Path(cfg.OUTPUT_DIR), Path(cfg.RESUME or cfg.OUTPUT_DIR)
    has_checkpoints, is_same_folder = _has_checkpoints(folder), source.resolve() == folder.resolve()
    if cfg.RESUME and not _has_checkpoints(source):
        raise UserError(f"there is no checkpoint to resume from in {cfg.RESUME}")
    if not has_checkpoints and not cfg.RESUME:
        return [], False
    path = Path(folder if has_checkpoints else source, CONFIG_FILE)
    if not path.is_file():  # a run of the original CoOp has none
        problem = f"{folder} holds checkpoints, but no {CONFIG_FILE} with their settings"
        return [problem] if has_checkpoints and not (cfg.RESUME and is_same_folder) else [], has_checkpoints
    saved = _read_config(path)
    if has_checkpoints and not is_same_folder and source.resolve() != Path(saved.get("RESUME") or folder).resolve():
        return [f"{folder} holds the checkpoints of a run that was not resumed from {cfg.RESUME}"], True
    changes = _diff(saved, yaml.safe_load(cfg.dump()), defaults)
    problem = f"{path.parent} holds the checkpoints of a run with other settings: {format_changes(changes)}"
    return [problem] if changes else [], has_checkpoints


def diff_configs(saved: str, current: str, defaults: CN) -> Changes:
    """Return the changes between two configs, texts of ``cfg.dump()``, but not of RESUMABLE_KEYS.

    A key that ``saved`` lacks has its value in ``defaults``. Raises ``UserError`` if a text is damaged.
    """
    try:
        return _diff(yaml.safe_load(saved), yaml.safe_load(current), defaults)
    except (yaml.YAMLError, AttributeError) as error:
        raise UserError(f"the settings in the checkpoint are damaged: {error_reason(error)}") from error


def read_run_config(folder: str) -> dict[str, Any] | None:
    """Return the config in ``folder`` as nested dicts; None if it does not hold ``config.yaml`` and checkpoints."""
    run = Path(folder)
    is_run = (run / CONFIG_FILE).is_file() and (_has_checkpoints(run) or any(run.glob("*/model*.pth.tar*")))
    return _read_config(run / CONFIG_FILE) if is_run else None


def _has_checkpoints(folder: Path) -> bool:
    """Return whether a run's folder holds checkpoints of any model."""
    return any(folder.glob("*/checkpoint"))


def _read_config(path: Path) -> dict[str, Any]:
    """Return the config in ``path``, a run's ``config.yaml``, as nested dicts; ``UserError`` if it is damaged."""
    try:
        return dict(read_yaml(path))
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}. Remove it and the checkpoints beside it") from error


def format_changes(changes: Changes) -> str:
    """Return the changes between two configs as a text: "KEY old -> new; KEY old -> new"."""
    return "; ".join(f"{key} {old} -> {new}" for key, (old, new) in changes.items())


def _diff(saved: dict[str, Any], current: dict[str, Any], defaults: CN) -> Changes:
    """Return the changes from ``saved`` to ``current``, as ``diff_configs`` of parsed configs, nested dicts."""
    known, new = dict(flatten(yaml.safe_load(defaults.dump()))), dict(flatten(current))
    old = {**{key: value for key, value in known.items() if key in new}, **dict(flatten(saved))}
    keys = [key for key in sorted({*old, *new}) if not key.startswith(RESUMABLE_KEYS)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}
