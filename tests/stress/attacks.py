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

CASES: dict[str, Callable[[Path], None]] = {}
MARKER = "executed"  # the file that a payload makes


def case(name: str) -> Callable:
    def register(function: Callable[[Path], None]) -> Callable[[Path], None]:
        CASES[name] = function
        return function

    return register


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
    "eval": lambda code, shell: EVAL + text(code) + b"\x85R",
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


def payload(attack: str, folder: Path) -> bytes:
    marker = folder / MARKER
    return ATTACKS[attack](f"__import__('pathlib').Path({str(marker)!r}).touch()", f"touch '{marker}'")


def few_shots_of(folder: Path) -> FewShotSplit:
    """The split of a data set of one image."""
    return FewShotSplit(folder, 1, 1, [Datum(folder / "a.jpg", 0, classname="a")], None)


def as_few_shots(folder: Path, pickled: bytes, size: int = 0) -> dict:
    """What a data set reads of the pickle, in place of the original's; ``size`` lengthens it."""
    path = few_shots_of(folder).path.with_suffix(".pkl")
    path.parent.mkdir()
    path.write_bytes(pickled)
    os.truncate(path, max(size, len(pickled)))
    return few_shots_of(folder).read()


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


def torch_old(path: Path, pickled: bytes) -> Path:
    """The same, in the format before the zip files."""
    torch.save({}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"\x80\x02}q\x00.\x80", pickled + b"\x80"))
    return path


READERS = {  # each reads the state dict, or the list of images, that some opcodes push
    "few-shot split": lambda folder, content: as_few_shots(folder, b"\x80\x02}" + text("train") + content + b"s."),
    "checkpoint": lambda folder, content: load_checkpoint(torch_zip(folder / "model.pth.tar-1", state_dict(content))),
    "weights": lambda folder, content: read_state_dict(torch_zip(folder / "weights.pt", state_dict(content))),
    "old checkpoint": lambda folder, content: load_checkpoint(torch_old(folder / "old", state_dict(content))),
}


def attacked(attack: str, reader: str, folder: Path) -> None:
    READERS[reader](folder, payload(attack, folder))


for _attack in ATTACKS:
    for _reader in READERS:
        CASES[f"{_reader}: {_attack}"] = partial(attacked, _attack, _reader)

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


def learned(context: str, reader: str, folder: Path) -> None:
    READERS[reader](folder, b"}" + text("ctx") + MEMORY[context] + b"s")


def numbered(path: Path) -> None:
    torch.save({1: torch.ones(1)}, path)
    read_state_dict(path)


CASES |= {f"{reader}: {name}": partial(learned, name, reader) for reader in list(READERS)[1:] for name in MEMORY}
CASES["weights: a name that is a number"] = lambda folder: numbered(folder / "weights.pt")
CASES["few-shot split: a memo of 16 GB"] = lambda folder: as_few_shots(folder, b"\x80\x02]r\xff\xff\xff\x7f.")
CASES["few-shot split: far too long"] = lambda folder: as_few_shots(folder, b"\x80\x02}.", size=1 << 30)


@case("checkpoint: a tensor of 256 GB made of one number")
def _(folder: Path) -> None:
    torch.save({"state_dict": {"ctx": torch.ones(1).expand(1 << 36)}}, folder / "model.pth.tar-1")
    load_checkpoint(folder / "model.pth.tar-1")


@case("checkpoint: a zip bomb")
def _(folder: Path) -> None:
    content = state_dict(text(" " * (1 << 26)))
    load_checkpoint(torch_zip(folder / "model.pth.tar-1", content, zipfile.ZIP_DEFLATED))


@case("weights: TorchScript of somebody")
def _(folder: Path) -> None:
    with zipfile.ZipFile(folder / "weights.pt", "w") as archive:
        archive.writestr("weights/constants.pkl", b"\x80\x02).")
        archive.writestr("weights/code/__torch__.py", "import os\n")
    read_state_dict(folder / "weights.pt")


def safetensors(folder: Path, header: bytes, length: int | None = None) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + bytes(8))
    read_state_dict(path)


def _lying(shape: list[int], end: int) -> bytes:
    return json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


CASES |= {
    "safetensors: a header of 2 EB": lambda folder: safetensors(folder, b"{}", length=1 << 61),
    "safetensors: a shape of 4 TB": lambda folder: safetensors(folder, _lying([1 << 40], 8)),
    "safetensors: data behind the end": lambda folder: safetensors(folder, _lying([1 << 40], 1 << 42)),
}


@case("feature cache: a pickle in place of features")
def _(folder: Path) -> None:
    path = folder / "0.safetensors"
    path.write_bytes(b"\x80\x04" + payload("reduce", folder) + b".")
    assert read_shard(path, "encoder") is None
    assert not path.exists()


@case("few-shot split: an image from elsewhere")
def _(folder: Path) -> None:
    split = few_shots_of(folder / "data")
    split.write({"train": [Datum(folder / "secret.jpg", 0, classname="a")]})
    assert split.read() == {}
