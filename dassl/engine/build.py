"""The registry of trainers, their config nodes, and building one."""

from __future__ import annotations

import time
from pathlib import Path

import yaml
from yacs.config import CfgNode

from dassl.config import fill_defaults, get_cfg_default
from dassl.config.run_config import read_run_seed
from dassl.distributed import run_on_main
from dassl.utils import Registry, UserError, load_checkpoint, set_random_seed
from dassl.utils.checkpoint import latest_checkpoint

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
    """Build the trainer that TRAINER.NAME names, with its data and model; :class:`UserError` for an unknown name.

    Keys that are missing in ``cfg``, as in one made from another copy of Dassl's defaults, get their defaults. In place
    of a negative SEED, the trainer gets that of :func:`choose_seed`, which also seeds the generators.
    """
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    cfg = fill_defaults(cfg)
    if cfg.SEED < 0:  # only in another repository's train.py: with one seed for all, they would draw the same shots
        cfg, is_frozen = cfg.clone(), cfg.is_frozen()
        cfg.defrost()
        cfg.SEED = choose_seed(cfg)
        if is_frozen:
            cfg.freeze()
        print(f"No seed is given; this run has the seed {cfg.SEED}")
        set_random_seed(cfg.SEED)
    return trainer(cfg)


def choose_seed(cfg: CfgNode) -> int:
    """Return SEED; if it is negative, the seed of the run to resume; without such a run, a new seed from the clock.

    Raises :class:`UserError` if the seed is too large for PyTorch, or the output directory cannot be read.
    """
    try:
        seed = cfg.SEED if cfg.SEED >= 0 else run_on_main(lambda: read_saved_seed(cfg.OUTPUT_DIR, cfg.RESUME))
    except OSError as error:  # such as a name that is too long
        raise UserError(f"cannot look into {cfg.OUTPUT_DIR} for an earlier run: {error.strerror}") from error
    if type(seed) is not int:
        seed = run_on_main(lambda: time.time_ns() % 2**31)
    if seed >= 2**63:
        raise UserError(f"the seed {seed} is too large; PyTorch takes up to {2**63 - 1}")
    return seed


def read_saved_seed(*folders: str) -> int | None:
    """Return the seed of the first of ``folders`` that holds a run's checkpoints and their settings, or None.

    The settings are in ``config.yaml``; in a run of another repository's train.py, only in the checkpoints. Raises
    :class:`UserError` if either is damaged.
    """
    for folder in filter(None, folders):
        if (seed := read_run_seed(folder)) is not None:
            return seed
        for path in (latest_checkpoint(pointer.parent) for pointer in sorted(Path(folder).glob("*/checkpoint"))):
            if path is not None and path.is_file() and (origin := load_checkpoint(path).get("origin")):
                try:
                    return yaml.safe_load(origin["settings"])["SEED"]
                except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
                    raise UserError(f"the settings in {path} are damaged: {error!r}") from error
    return None
