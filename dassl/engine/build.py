"""Trainers by name."""

from __future__ import annotations

from yacs.config import CfgNode

from dassl.config import fill_defaults, get_cfg_default
from dassl.utils import Registry

TRAINER_REGISTRY = Registry("TRAINER")


def default_cfg() -> CfgNode:
    """Return every key and its default, those of all registered trainers among them."""
    cfg = get_cfg_default()
    for name in TRAINER_REGISTRY.registered_names():
        if hasattr(trainer := TRAINER_REGISTRY.get(name), "extend_cfg"):  # a class of the field may be no TrainerBase
            trainer.extend_cfg(cfg)
    return cfg


def get_trainer_nodes(trainer: type) -> set[str]:
    """Return the nodes below TRAINER that a trainer reads: its own, and those of the trainers it builds on."""
    cfg = get_cfg_default()
    for base in trainer.__mro__:
        if hasattr(base, "extend_cfg"):
            base.extend_cfg(cfg)
    return set(cfg.TRAINER)


def build_trainer(cfg: CfgNode):
    """Build the trainer that TRAINER.NAME names, with its data and model.

    Keys that ``cfg`` lacks, such as one that was made by another repository's copy of Dassl's defaults, get theirs.
    """
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return trainer(fill_defaults(cfg))
