"""Files of torch.save that hold live objects, as the original's checkpoints hold their scheduler: the plain rest of
them, read without importing or calling anything that they name."""

from __future__ import annotations

import os
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch


class Inert:
    """Stands for a class or function that a file names. It can be made from anything and keeps nothing."""

    __slots__ = ()

    def __new__(cls, *_):
        return super().__new__(cls)

    def __setstate__(self, state) -> None:
        pass


class _DType:
    """Stands for NumPy's data types."""

    def __init__(self, name: str, *_):
        self.name = str(name)

    def __setstate__(self, state) -> None:
        pass


def _number(dtype: _DType, data: bytes) -> float | int | bool:
    """A NumPy number as Python's; its bytes are in this machine's order."""
    return np.frombuffer(data, dtype.name)[0].item()


STAND_INS = {
    "collections.defaultdict": lambda *_: {},  # PyTorch's reader puts entries into plain dicts alone
    "numpy.dtype": _DType,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,  # from NumPy 2 on
}


def load_plain(path: str | os.PathLike) -> Any:
    """What ``torch.load`` reads with ``weights_only``: tensors, plain values and containers, on the CPU.

    Where that refuses the file for classes that it does not know, an inert one stands for each of them; entries that
    would hold one are left out of the dict that the file holds, and of the dicts in it.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if not names:
            raise
    with torch.serialization.safe_globals([(STAND_INS.get(name, Inert), name) for name in names]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        return content
    return {k: _without_inert(v) if isinstance(v, dict) else v for k, v in _without_inert(content).items()}


def _without_inert(entries: dict) -> dict:
    return {key: value for key, value in entries.items() if not (isinstance(value, Inert) or value is Inert)}
