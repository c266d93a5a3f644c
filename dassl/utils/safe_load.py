"""Files of torch.save, read without importing or calling anything that they name, with no more memory than their size.
Of those that hold live objects, as the original's checkpoints hold their scheduler, the plain rest is read."""

from __future__ import annotations

import mmap
import os
import zipfile
from collections.abc import Iterator
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from .errors import UserError

BYTEARRAY_GLOBAL = b"bytearray\n"  # as a pickle names it, the one thing that PyTorch lets it make in any size


class Placeholder:
    """Stands for a class or function that a file names. It can be made from anything and keeps nothing."""

    __slots__ = ()

    def __new__(cls, *_):
        return super().__new__(cls)

    def __setstate__(self, state) -> None:
        pass


class _NumpyDType(Placeholder):
    """Stands for NumPy's data types."""

    __slots__ = ("name",)

    def __init__(self, name: str, *_):
        self.name = str(name)


def _numpy_scalar(dtype: _NumpyDType, data: bytes) -> float | int | bool:
    """A NumPy number as Python's; its bytes are in this machine's order."""
    return np.frombuffer(data, dtype.name)[0].item()


STAND_INS = {
    "collections.defaultdict": lambda *_: {},  # PyTorch's reader puts entries into plain dicts alone
    "numpy.dtype": _NumpyDType,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,  # from NumPy 2 on
}


def load_weights_only(path: str | os.PathLike) -> Any:
    """``torch.load`` with ``weights_only``, on the CPU.

    Raises:
        UserError: the file would take far more memory than it has bytes. torch.save compresses nothing, and keeps of
            each tensor what the tensor takes.
    """
    size = os.path.getsize(path)
    _check_archive(path, size)
    content = torch.load(path, map_location="cpu", weights_only=True)
    for tensor in _iterate_tensors(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.nbytes > size:
            raise UserError(
                f"{path} has a tensor of shape {tuple(tensor.shape)} ({tensor.dtype}), which its {size:,} bytes cannot "
                "hold. It is refused, as it could take any amount of memory"
            )
    return content


def _check_archive(path: str | os.PathLike, size: int) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if (total := sum(record.file_size for record in records)) > size:
                raise UserError(f"{path} unpacks from {size:,} to {total:,} bytes; torch.save compresses nothing")
            found = any(
                BYTEARRAY_GLOBAL in archive.read(record) for record in records if record.filename.endswith(".pkl")
            )
    else:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = content.find(BYTEARRAY_GLOBAL) >= 0
    if found:
        raise UserError(f"{path} names Python's bytearray, which can take any amount of memory and has no place in it")


def _iterate_tensors(content: Any) -> Iterator[torch.Tensor]:
    """Every tensor in containers in containers, which may hold one another."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)


def safe_torch_load(path: str | os.PathLike) -> Any:
    """What ``torch.load`` reads with ``weights_only``: tensors, plain values and containers, on the CPU.

    Where that refuses the file for classes that it does not know, an inert one stands for each of them; entries that
    would hold one are left out of the dict that the file holds, and of the dicts in it.

    Raises:
        UserError: the file would take far more memory than it has bytes.
    """
    try:
        return load_weights_only(path)
    except UnpicklingError:
        names = zipfile.is_zipfile(path) and torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if not names:
            raise
    with torch.serialization.safe_globals([(STAND_INS.get(name, Placeholder), name) for name in names]):
        content = load_weights_only(path)
    if not isinstance(content, dict):
        return content
    return {k: _drop_placeholders(v) if isinstance(v, dict) else v for k, v in _drop_placeholders(content).items()}


def _drop_placeholders(entries: dict) -> dict:
    return {
        key: value for key, value in entries.items() if not (isinstance(value, Placeholder) or value is Placeholder)
    }
