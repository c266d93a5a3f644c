"""Safe reading of files of torch.save: it imports and calls nothing that a file names, and takes no more memory than
the file's size. From files with live objects, such as the schedulers in the original's checkpoints, it reads the plain
values and tensors."""

from __future__ import annotations

import mmap
import os
import zipfile
from collections.abc import Callable, Iterator
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from .errors import UserError

# bytearray as a pickle names it: the only type that PyTorch's safe reader lets a small file create in any size.
BYTEARRAY_GLOBAL = b"bytearray\n"


class Placeholder:
    """An inert object in place of a class or function that a file names; it takes any arguments and stores none."""

    __slots__ = ()

    def __new__(cls, *_):
        """Return an empty object; ignore the arguments that the file gives to the class."""
        return super().__new__(cls)

    def __setstate__(self, state) -> None:
        """Ignore the state that the file gives to the object."""


class _NumpyDType(Placeholder):
    """A stand-in for ``numpy.dtype`` that stores the name of the data type."""

    __slots__ = ("name",)

    def __init__(self, name: str, *_):
        self.name = str(name)


def _numpy_scalar(dtype: _NumpyDType, data: bytes) -> float | int | bool:
    """Return the Python number of a NumPy scalar, from its bytes in this machine's order."""
    return np.frombuffer(data, dtype.name)[0].item()


# Replacements for names in a file whose content a checkpoint needs; a Placeholder replaces any other name.
STAND_INS: dict[str, Callable[..., Any]] = {
    "collections.defaultdict": lambda *_: {},  # PyTorch's safe reader fills plain dicts only
    "numpy.dtype": _NumpyDType,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,  # from NumPy 2 on
}


def load_weights_only(path: str | os.PathLike) -> Any:
    """Return the content of a file as ``torch.load`` with ``weights_only`` reads it, on the CPU.

    Raises:
        UserError: the content would take more memory than the file has bytes. A file of torch.save never does: it is
            not compressed and holds all bytes of each tensor.
        UnpicklingError: the file names classes that torch.load refuses. A damaged file raises various classes.
    """
    size = os.path.getsize(path)
    _check_archive(path, size)
    with open(path, "rb") as file:  # of a path, torch.load reads the ending .safetensors as the format
        content = torch.load(file, map_location="cpu", weights_only=True)
    for tensor in _iterate_tensors(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.nbytes > size:
            raise UserError(
                f"{path} has a tensor of shape {tuple(tensor.shape)} ({tensor.dtype}), which its {size:,} bytes cannot "
                "hold. The file is refused, as it could fill the memory"
            )
    return content


def _check_archive(path: str | os.PathLike, size: int) -> None:
    """Raise ``UserError`` where a file of ``size`` bytes is compressed or its pickle names ``bytearray``."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if (total := sum(record.file_size for record in records)) > size:
                raise UserError(f"{path} unpacks from {size:,} to {total:,} bytes; torch.save compresses nothing")
            pickles = (archive.read(record) for record in records if record.filename.endswith(".pkl"))
            names_bytearray = any(BYTEARRAY_GLOBAL in pickled for pickled in pickles)
    else:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            names_bytearray = content.find(BYTEARRAY_GLOBAL) >= 0
    if names_bytearray:
        raise UserError(f"{path} names Python's bytearray, which can fill the memory. The file is refused")


def _iterate_tensors(content: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor in nested containers, each container once, even if it contains itself."""
    pending, visited = [content], set()
    while pending:
        value = pending.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in visited:
            visited.add(id(value))
            pending.extend(value.values() if isinstance(value, dict) else value)


def safe_torch_load(path: str | os.PathLike) -> Any:
    """Return the tensors, plain values and containers in a file of torch.save, on the CPU.

    Where the file names classes that ``torch.load`` with ``weights_only`` refuses, a ``Placeholder`` replaces each
    of them. Entries whose value is a placeholder are dropped from the file's dict and from the dicts directly in it.

    Raises:
        UserError: the content would take more memory than the file has bytes.
        Exception: the file is damaged, or is not one of torch.save; torch.load has no class of its own for that.
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
    """Return a dict without the entries whose value is a ``Placeholder`` object or class."""
    return {
        key: value for key, value in entries.items() if not (isinstance(value, Placeholder) or value is Placeholder)
    }
