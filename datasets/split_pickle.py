"""Few-shot splits of the original, pickles ``{"train": [Datum, …], "val": […]}``, read without running anything."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path

from dassl.utils import UserError

DATUM_GLOBALS = {("dassl.data.datasets.base_dataset", "Datum"), ("dassl.data.datasets", "Datum")}
SPLIT_NAMES = ("train", "val")


def read_split_pickle(path: Path, most_bytes: int) -> dict[str, list[tuple[str, int, str]]]:
    """Return the path, label and class name of each image, as the file of at most ``most_bytes`` has them.

    Raises:
        UserError: the file names something that is not the original's ``Datum``, or would take much memory.
        ValueError: it is damaged, or holds no such split.
    """
    if (size := path.stat().st_size) > most_bytes:
        raise UserError(f"{path} has {size:,} bytes, far more than a split of these images takes. Remove it")
    data = path.read_bytes()
    try:
        # A few bytes can make Python's reader allocate any amount: the place in its memo is one of its sizes.
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(data):
                raise UserError(f"{path} asks for memory for {argument:,} objects, with {len(data):,} bytes. Remove it")
        content = _SplitUnpickler(path, data).load()
    except UserError:
        raise
    except Exception as error:  # pickle raises whatever it meets in a damaged file
        raise ValueError(f"no whole pickle: {error}") from error
    if type(content) is not dict or "train" not in content:
        raise ValueError('no dict with the key "train"')
    return {
        part: [_datum_to_entry(item) for item in content[part]]
        for part in SPLIT_NAMES
        if type(content.get(part)) is list
    }


class _SplitUnpickler(pickle.Unpickler):
    """Knows one class, which stands for ``Datum`` and takes what is stored of it as it is."""

    def __init__(self, path: Path, data: bytes):
        super().__init__(io.BytesIO(data))
        self.path, self.datum = path, type("Datum", (), {})  # a file may change its class, so each file has its own

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in DATUM_GLOBALS:
            code = f"{module}.{name}, which has no place in a few-shot split"
            raise UserError(f"{self.path} wants to run {code}. Remove it, and distrust what came with it")
        return self.datum


def _datum_to_entry(item: object) -> tuple[str, int, str]:
    stored = getattr(item, "__dict__", {})
    entry = tuple(stored.get(key) for key in ("_impath", "_label", "_classname"))
    if not is_split_entry(entry):
        raise ValueError("an entry is no Datum with path, label and class name")
    return entry


def is_split_entry(entry: object) -> bool:
    """Tell whether that is a path, a label and a class name, as an image is listed."""
    return isinstance(entry, (list, tuple)) and [type(value) for value in entry] == [str, int, str]
