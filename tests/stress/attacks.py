"""Pickles that run code where Python's own reader reads them, or take up the memory, in all files that are or hold one;
and other files of tensors."""

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
from vlm.clip.load import read_state_dict
from vlm.images.feature_store import read_shard

MARKER = "executed"  # the file that a payload makes


class Victim:
    """A class that a file may change."""


def text(value: str) -> bytes:
    """The opcodes that push a string."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


EVAL = b"cbuiltins\neval\n"
VICTIM = b"ctests.stress.attacks\nVictim\n"
BASE = "dassl.data.datasets.base_dataset"
ATTACKS = {  # from Python code that makes the marker, and a shell's command that does
    "reduce": lambda code, shell: b"cposix\nsystem\n" + text(shell) + b"\x85R",
    "stack global": lambda code, shell: text("builtins") + text("eval") + b"\x93" + text(code) + b"\x85R",
    "inst": lambda code, shell: b"(" + text(code) + b"ibuiltins\neval\n",
    "obj": lambda code, shell: b"(" + EVAL + text(code) + b"o",
    "a way through Datum's module": lambda code, shell: (
        text(BASE) + text("random._os.system") + b"\x93" + text(shell) + b"\x85R"
    ),
    "__setstate__": lambda code, shell: (  # given to a class, which calls it for its next object
        VICTIM + b"(N}" + text("__setstate__") + b"cposix\nsystem\nstb0" + VICTIM + b")\x81" + text(shell) + b"b"
    ),
    "inside a tensor": lambda code, shell: (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + EVAL + b"cbuiltins\nobject\n" + text(code) + b"\x85NtR"
    ),
}
MEMORY = {
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
    marker = folder / MARKER
    return ATTACKS[attack](f"__import__('pathlib').Path({str(marker)!r}).touch()", f"touch '{marker}'")


def few_shots(folder: Path, pickled: bytes, size: int = 0) -> dict:
    """What a data set of one image reads of the original's pickle; ``size`` lengthens it."""
    split = FewShotSplit(folder, 1, 1, [Datum(folder / "a.jpg", 0, classname="a")], None)
    path = split.path.with_suffix(".pkl")
    path.parent.mkdir()
    path.write_bytes(pickled)
    os.truncate(path, max(size, len(pickled)))
    return split.read()


def torch_zip(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A file of torch.save with another pickle in it."""
    buffer = io.BytesIO()
    torch.save({}, buffer)
    with zipfile.ZipFile(buffer) as plain, zipfile.ZipFile(path, "w", compression) as crafted:
        for name in plain.namelist():
            crafted.writestr(name, pickled if name.endswith("data.pkl") else plain.read(name))
    return path


def state_dict(value: bytes) -> bytes:
    return b"\x80\x02}" + text("state_dict") + value + b"s."


READERS = {  # each reads the state dict, or the list of images, that some opcodes push
    "few-shot split": lambda folder, content: few_shots(folder, b"\x80\x02}" + text("train") + content + b"s."),
    "checkpoint": lambda folder, content: load_checkpoint(torch_zip(folder / "model.pth.tar-1", state_dict(content))),
    "weights": lambda folder, content: read_state_dict(torch_zip(folder / "weights.pt", state_dict(content))),
}


def attacked(reader: str, attack: str, folder: Path) -> None:
    READERS[reader](folder, payload(attack, folder))


def learned(reader: str, context: str, folder: Path) -> None:
    READERS[reader](folder, b"}" + text("ctx") + MEMORY[context] + b"s")


def expanded(folder: Path) -> None:
    torch.save({"state_dict": {"ctx": torch.ones(1).expand(1 << 36)}}, folder / "model.pth.tar-1")
    load_checkpoint(folder / "model.pth.tar-1")


def zip_bomb(folder: Path) -> None:
    content = state_dict(text(" " * (1 << 24)))
    load_checkpoint(torch_zip(folder / "model.pth.tar-1", content, zipfile.ZIP_DEFLATED))


def numbered(folder: Path) -> None:
    torch.save({1: torch.ones(1)}, folder / "weights.pt")
    read_state_dict(folder / "weights.pt")


def safetensors(shape: list[int], end: int, length: int, folder: Path) -> None:
    """A file whose header tells these things of its one tensor, which has eight bytes, and ``length`` of itself."""
    path = folder / "weights.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    path.write_bytes(struct.pack("<Q", length or len(header)) + header + bytes(8))
    read_state_dict(path)


def shard(folder: Path) -> None:
    path = folder / "0.safetensors"
    path.write_bytes(b"\x80\x04" + payload("reduce", folder) + b".")
    assert read_shard(path, "encoder") is None
    assert not path.exists()


# What a file is -> a function that makes it in a folder and has it read.
CASES: dict[str, Callable[[Path], object]] = {
    **{f"{reader}: {name}": partial(attacked, reader, name) for reader in READERS for name in ATTACKS},
    **{f"{reader}: {name}": partial(learned, reader, name) for reader in ("checkpoint", "weights") for name in MEMORY},
    "few-shot split: a memo of 16 GB": partial(few_shots, pickled=b"\x80\x02]r\xff\xff\xff\x7f."),
    "few-shot split: far too long": partial(few_shots, pickled=b"\x80\x02}.", size=1 << 30),
    "checkpoint: a tensor of 256 GB made of one number": expanded,
    "checkpoint: a zip bomb": zip_bomb,
    "weights: a name that is a number": numbered,
    "safetensors: a header of 2 EB": partial(safetensors, [2], 8, 1 << 61),
    "safetensors: data behind the end": partial(safetensors, [1 << 40], 1 << 42, 0),
    "feature cache: a pickle in place of features": shard,
}
