"""Pickles that run code or fill the memory when Python's pickle module reads them, in all kinds of files that hold a
pickle; and hostile files of tensors."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from dassl.data.datasets import Datum
from dassl.utils import load_checkpoint
from datasets.few_shot_split import FewShotSplit
from vlm.clip.weights_file import read_state_dict
from vlm.images.feature_store import read_shard

MARKER = "executed"  # the file that a payload creates


class Victim:
    """A class that a file may change."""


def text(value: str) -> bytes:
    """Return the opcodes that push a string."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """Return the opcodes that push an integer."""
    return b"\x8a\x08" + struct.pack("<q", value)


EVAL = b"cbuiltins\neval\n"
VICTIM = b"ctests.stress.attacks\nVictim\n"
BASE = "dassl.data.datasets.base_dataset"
# Functions that return the opcodes of an attack, from Python code and a shell command that create the marker.
ATTACKS = {
    "reduce": lambda code, shell: b"cposix\nsystem\n" + text(shell) + b"\x85R",
    "stack global": lambda code, shell: text("builtins") + text("eval") + b"\x93" + text(code) + b"\x85R",
    "inst": lambda code, shell: b"(" + text(code) + b"ibuiltins\neval\n",
    "obj": lambda code, shell: b"(" + EVAL + text(code) + b"o",
    "a way through Datum's module": lambda code, shell: (
        text(BASE) + text("random._os.system") + b"\x93" + text(shell) + b"\x85R"
    ),
    "__setstate__": lambda code, shell: (  # sets the method of a class, which is called for its next object
        VICTIM + b"(N}" + text("__setstate__") + b"cposix\nsystem\nstb0" + VICTIM + b")\x81" + text(shell) + b"b"
    ),
    "inside a tensor": lambda code, shell: (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + EVAL + b"cbuiltins\nobject\n" + text(code) + b"\x85NtR"
    ),
}
MEMORY = {  # opcodes of small files that create huge objects
    "a bytearray of 1 TB": b"cbuiltins\nbytearray\n" + number(1 << 40) + b"\x85R",
    "a tensor without a place": (
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n("
        + number(1 << 40)
        + b"t("
        + number(1)
        + b"t\x89tR"
    ),
}


def payload(attack: str, folder: Path) -> bytes:
    """Return the opcodes of an attack that creates the marker in ``folder``."""
    marker = folder / MARKER
    return ATTACKS[attack](f"__import__('pathlib').Path({str(marker)!r}).touch()", f"touch '{marker}'")


def read_few_shot_split(folder: Path, pickled: bytes, size: int = 0) -> dict:
    """Read a pickled split of the original for a data set of one image; the file is extended to ``size`` bytes."""
    split = FewShotSplit(folder, 1, 1, [Datum(folder / "a.jpg", 0, classname="a")], None)
    path = split.path.with_suffix(".pkl")
    path.parent.mkdir()
    path.write_bytes(pickled)
    os.truncate(path, max(size, len(pickled)))
    return split.read()


def torch_zip(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a file of torch.save that holds the opcodes ``pickled``, and return its path."""
    buffer = io.BytesIO()
    torch.save({}, buffer)
    with zipfile.ZipFile(buffer) as plain, zipfile.ZipFile(path, "w", compression) as crafted:
        for name in plain.namelist():
            crafted.writestr(name, pickled if name.endswith("data.pkl") else plain.read(name))
    return path


def state_dict(value: bytes) -> bytes:
    """Return the pickle of a checkpoint whose state dict some opcodes push."""
    return b"\x80\x02}" + text("state_dict") + value + b"s."


READERS = {  # functions that write a file with the opcodes of a state dict or of a list of images, and read it
    "few-shot split": lambda folder, content: read_few_shot_split(
        folder, b"\x80\x02}" + text("train") + content + b"s."
    ),
    "checkpoint": lambda folder, content: load_checkpoint(torch_zip(folder / "model.pth.tar-1", state_dict(content))),
    "weights": lambda folder, content: read_state_dict(torch_zip(folder / "weights.pt", state_dict(content))),
}


def read_attack(reader: str, attack: str, folder: Path) -> None:
    """Read a file with an attack."""
    READERS[reader](folder, payload(attack, folder))


def read_huge_context(reader: str, context: str, folder: Path) -> None:
    """Read a state dict whose context is a huge object of ``MEMORY``."""
    READERS[reader](folder, b"}" + text("ctx") + MEMORY[context] + b"s")


def read_expanded_tensor(folder: Path) -> None:
    """Read a checkpoint with a huge tensor of which the file holds one number."""
    torch.save({"state_dict": {"ctx": torch.ones(1).expand(1 << 36)}}, folder / "model.pth.tar-1")
    load_checkpoint(folder / "model.pth.tar-1")


def read_zip_bomb(folder: Path) -> None:
    """Read a compressed checkpoint."""
    content = state_dict(text(" " * (1 << 24)))
    load_checkpoint(torch_zip(folder / "model.pth.tar-1", content, zipfile.ZIP_DEFLATED))


def read_number_as_name(folder: Path) -> None:
    """Read weights in which the name of a tensor is a number."""
    torch.save({1: torch.ones(1)}, folder / "weights.pt")
    read_state_dict(folder / "weights.pt")


def read_safetensors(shape: list[int], end: int, length: int, folder: Path) -> None:
    """Read a file with one tensor of eight bytes; ``shape``, ``end`` and ``length`` are the claims of its header."""
    path = folder / "weights.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    path.write_bytes(struct.pack("<Q", length or len(header)) + header + bytes(8))
    read_state_dict(path)


def read_pickled_shard(folder: Path) -> None:
    """Read a shard of a feature store that is an attack; it is not run but removed."""
    path = folder / "0.safetensors"
    path.write_bytes(b"\x80\x04" + payload("reduce", folder) + b".")
    assert read_shard(path, "encoder") is None
    assert not path.exists()


# By description of a hostile file: a function that writes it to a folder and reads it.
CASES: dict[str, Callable[[Path], object]] = {
    **{f"{reader}: {name}": partial(read_attack, reader, name) for reader in READERS for name in ATTACKS},
    **{
        f"{reader}: {name}": partial(read_huge_context, reader, name)
        for reader in ("checkpoint", "weights")
        for name in MEMORY
    },
    "few-shot split: a memo of 16 GB": partial(read_few_shot_split, pickled=b"\x80\x02]r\xff\xff\xff\x7f."),
    "few-shot split: far too long": partial(read_few_shot_split, pickled=b"\x80\x02}.", size=1 << 30),
    "checkpoint: a tensor of 256 GB made of one number": read_expanded_tensor,
    "checkpoint: a zip bomb": read_zip_bomb,
    "weights: a name that is a number": read_number_as_name,
    "safetensors: a header of 2 EB": partial(read_safetensors, [2], 8, 1 << 61),
    "safetensors: data behind the end": partial(read_safetensors, [1 << 40], 1 << 42, 0),
    "feature cache: a pickle in place of features": read_pickled_shard,
}
