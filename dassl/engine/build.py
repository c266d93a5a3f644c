"""Trainers by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.utils import Registry

if TYPE_CHECKING:
    from .base import TrainerBase

TRAINER_REGISTRY = Registry("TRAINER")


def default_cfg() -> CfgNode:
    """Every key and its default, those of all registered trainers among them."""
    cfg = get_cfg_default()
    for name in TRAINER_REGISTRY.registered_names():
        if hasattr(trainer := TRAINER_REGISTRY.get(name), "extend_cfg"):  # a class of the field may be no TrainerBase
            trainer.extend_cfg(cfg)
    return cfg


def build_trainer(cfg: CfgNode) -> TrainerBase:
    """The trainer that TRAINER.NAME names, with its data and model built."""
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return trainer(cfg)
