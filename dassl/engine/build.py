"""The registry of trainers, their config nodes, and building one."""

from __future__ import annotations

from yacs.config import CfgNode

from dassl.config import fill_defaults, get_cfg_default
from dassl.utils import Registry

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

    Keys that are missing in ``cfg``, as in one made from another copy of Dassl's defaults, get their defaults.
    """
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return trainer(fill_defaults(cfg))
