"""Data sets, transforms, samplers and loaders."""

from typing import TYPE_CHECKING

from dassl.lazy import attach

if TYPE_CHECKING:
    from .data_manager import DataManager, DatasetWrapper
    from .datasets.build import build_dataset
    from .datasets.fingerprint import SPLITS
    from .images import find_unreadable

__getattr__, __all__ = attach(__name__)
