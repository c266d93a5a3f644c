"""Reads few-shot splits of CoOp's code, pickles ``{"train": [Datum, …], "val": […]}``, without executing code."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path

from dassl.utils import UserError

DATUM_GLOBALS = {("dassl.data.datasets.base_dataset", "Datum"), ("dassl.data.datasets", "Datum")}  # in Dassl's pickles
FEW_SHOT_SPLITS = ("train", "val")  # keys in a stored split


def read_split_pickle(path: Path, max_bytes: int) -> dict[str, list[tuple[str, int, str]]]:
    """Return the path (as stored), label and class name of each image, by split: train and, if it is there, val.

    Raises:
        UserError: the file refers to code other than ``Datum``, has over ``max_bytes``, or asks for much memory.
        ValueError: the file is damaged, or holds no such split.
    """
    if (size := path.stat().st_size) > max_bytes:
        raise UserError(f"{path} has {size:,} bytes, far more than a split of these images takes. Remove it")
    data = path.read_bytes()
    try:
        # A few bytes can make Python's unpickler allocate any amount of memory: its memo grows to the largest index.
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > len(data):
                raise UserError(f"{path} asks for memory for {argument:,} objects, with {len(data):,} bytes. Remove it")
        content = _SplitUnpickler(path, data).load()
    except UserError:
        raise
    except Exception as error:  # pickle raises whatever it meets in a damaged file
        raise ValueError(f"not a complete pickle: {error}") from error
    if type(content) is not dict or "train" not in content:
        raise ValueError('no dict with the key "train"')
    splits = [split for split in FEW_SHOT_SPLITS if type(content.get(split)) is list]
    return {split: [_datum_to_entry(item) for item in content[split]] for split in splits}


class _SplitUnpickler(pickle.Unpickler):
    """An unpickler of ``data`` from the file ``path`` that knows one class: an empty substitute for ``Datum``."""

    def __init__(self, path: Path, data: bytes):
        super().__init__(io.BytesIO(data))
        self.path, self.datum = path, type("Datum", (), {})  # a pickle can change the class: a new one each

    def find_class(self, module: str, name: str) -> type:
        """Return the substitute for ``Datum``; raise ``UserError`` for any other name."""
        if (module, name) not in DATUM_GLOBALS:
            code = f"{module}.{name}, which no few-shot split needs"
            raise UserError(f"{self.path} would run the code {code}. Remove it, and distrust its source")
        return self.datum


def _datum_to_entry(item: object) -> tuple[str, int, str]:
    """Return path, label and class name of an unpickled ``Datum``; raise a ValueError if it has none."""
    attributes = getattr(item, "__dict__", {})
    entry = tuple(attributes.get(key) for key in ("_impath", "_label", "_classname"))
    if not is_split_entry(entry):
        raise ValueError("an entry is no Datum with path, label and class name")
    return entry  # type: ignore[return-value]  # is_split_entry has checked it


def is_split_entry(entry: object) -> bool:
    """Return whether ``entry`` is a list or tuple of a path, a label and a class name."""
    return isinstance(entry, (list, tuple)) and [type(value) for value in entry] == [str, int, str]
