"""Data sets, transforms and loaders."""

from typing import TYPE_CHECKING

from dassl.lazy import attach

if TYPE_CHECKING:
    from .data_manager import DataManager, DatasetWrapper

__getattr__, __all__ = attach(__name__, {"data_manager": "DataManager DatasetWrapper"})
