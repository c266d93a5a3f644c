"""The registry of trainers, their config nodes, and building one."""

from __future__ import annotations

import time
from dataclasses import astuple
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from dassl.config import fill_defaults, get_cfg_default, merge_options
from dassl.config.merge import flatten
from dassl.config.run_config import DECODING_KEYS, read_run_config
from dassl.data.decoding import ORIGINAL, get_decoding
from dassl.distributed import run_on_main
from dassl.utils import Registry, UserError, check_at_least, check_availability, load_checkpoint, set_random_seed
from dassl.utils.checkpoint import latest_checkpoint
from dassl.utils.images import ORIENTATIONS

TRAINER_REGISTRY = Registry("TRAINER")


def default_cfg() -> CfgNode:
    """Return a config with the default of every key, including the keys of all registered trainers."""
    cfg = get_cfg_default()
    for name in TRAINER_REGISTRY.registered_names():
        if hasattr(trainer := TRAINER_REGISTRY.get(name), "extend_cfg"):  # a third-party class may be no TrainerBase
            trainer.extend_cfg(cfg)
    return cfg


def get_trainer_nodes(trainer: type) -> set[str]:
    """Return the keys of TRAINER: NAME, and the nodes that the class ``trainer`` or one of its base classes adds."""
    cfg = get_cfg_default()
    for base in trainer.__mro__:
        if hasattr(base, "extend_cfg"):
            base.extend_cfg(cfg)
    return set(cfg.TRAINER)


def build_trainer(cfg: CfgNode):
    """Build the trainer that TRAINER.NAME names, with its data and model; ``UserError`` for an unknown name.

    Keys that are missing in ``cfg``, as in one made from another copy of Dassl's defaults, get their defaults. In place
    of a negative SEED, the trainer gets that of ``choose_seed``, which also seeds the generators. How images are
    decoded is resolved as by ``resolve_decoding``.
    """
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    cfg = fill_defaults(cfg)
    if cfg.SEED < 0 or not is_decoding_set(cfg):  # only in another repository's train.py
        cfg, is_frozen = cfg.clone(), cfg.is_frozen()
        cfg.defrost()
        resolve_decoding(cfg, cfg.OUTPUT_DIR, cfg.RESUME)
        if cfg.SEED < 0:  # with one seed for all, such runs would draw the same shots
            cfg.SEED = choose_seed(cfg)
            print(f"No seed is given; this run has the seed {cfg.SEED}")
            set_random_seed(cfg.SEED)
        if is_frozen:
            cfg.freeze()
    return trainer(cfg)


def choose_seed(cfg: CfgNode) -> int:
    """Return SEED; if it is negative, the seed of the run to resume; without such a run, a new seed from the clock.

    Raises ``UserError`` if the seed is too large for PyTorch, or the output directory cannot be read.
    """
    seed = cfg.SEED if cfg.SEED >= 0 else (read_saved_config(cfg.OUTPUT_DIR, cfg.RESUME) or {}).get("SEED")
    if type(seed) is not int:
        seed = run_on_main(lambda: time.time_ns() % 2**31)
    if seed >= 2**63:
        raise UserError(f"the seed {seed} is too large; PyTorch takes up to {2**63 - 1}")
    return seed


def is_decoding_set(cfg: CfgNode) -> bool:
    """Return whether ``cfg`` sets both keys of INPUT on the decoding of images; refuse values that they cannot have."""
    node = cfg.INPUT
    check_at_least(node.WHITE_LEVEL, -1, "INPUT.WHITE_LEVEL")
    if node.ORIENTATION:
        check_availability(node.ORIENTATION, ORIENTATIONS, "INPUT.ORIENTATION")
    return node.WHITE_LEVEL >= 0 and bool(node.ORIENTATION)


def resolve_decoding(cfg: CfgNode, *folders: str) -> None:
    """Set INPUT.WHITE_LEVEL and ORIENTATION in ``cfg``, where unset, to those of the first run in ``folders``.

    Without a run, they are those of ``dassl.data.decoding.get_decoding``. Raises ``UserError`` as
    ``read_saved_config``, or for a wrong value.
    """
    if not is_decoding_set(cfg):
        set_decoding(cfg, read_saved_config(*folders))


def set_decoding(cfg: CfgNode, saved: dict[str, Any] | None) -> None:
    """Set INPUT.WHITE_LEVEL and ORIENTATION in ``cfg``, where unset, to those of a run with the config ``saved``.

    A config without these keys is of a run that decoded images as the original does. None: there is no run.
    """
    values, decoding = dict(flatten(saved or {})), ORIGINAL if saved is not None else get_decoding(cfg)
    for key, value in zip(DECODING_KEYS, astuple(decoding), strict=True):
        if dict(flatten(cfg))[key] in (-1, ""):
            merge_options(cfg, [key, str(values.get(key, value))])
    is_decoding_set(cfg)


def read_saved_config(*folders: str) -> dict[str, Any] | None:
    """Return the config, as nested dicts, of the first of ``folders`` that holds a run's checkpoints; None without one.

    It is in ``config.yaml``; in a run of another repository's train.py, only in the checkpoints; and the original's
    have none: {}. Raises ``UserError`` if it is damaged, or a folder cannot be read.
    """
    try:
        configs = map(_read_saved_config, filter(None, folders))
        return run_on_main(lambda: next((config for config in configs if config is not None), None))
    except OSError as error:  # such as a name that is too long
        raise UserError(f"cannot look into {' or '.join(folders)} for an earlier run: {error.strerror}") from error


def _read_saved_config(folder: str) -> dict[str, Any] | None:
    """Return the config of the run in ``folder`` as ``read_saved_config`` does."""
    if (config := read_run_config(folder)) is not None:
        return config
    pointers = sorted(Path(folder).glob("*/checkpoint"))
    for path in (latest_checkpoint(pointer.parent) for pointer in pointers):
        if path is not None and path.is_file() and (origin := load_checkpoint(path).get("origin")):
            try:
                return dict(yaml.safe_load(origin["settings"]))
            except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
                raise UserError(f"the settings in {path} are damaged: {error!r}") from error
    return {} if pointers else None
