"""Data sets by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yacs.config import CfgNode

from dassl.utils import Registry

if TYPE_CHECKING:
    from .base_dataset import DatasetBase

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: CfgNode) -> DatasetBase:
    """The data set that DATASET.NAME names."""
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return dataset(cfg)
