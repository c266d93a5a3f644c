"""Files of CLIP's weights: their formats; and files of other kinds, with the option that takes each."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import load_file

from dassl.utils import UserError, error_reason, file_digest
from dassl.utils.checkpoint import holds_checkpoints
from dassl.utils.safe_load import load_weights_only, safe_torch_load
from vlm import openai

WEIGHTS_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")  # usual ends of the names of weights files
WRAPPERS = ("state_dict", "model_state_dict", "model")  # names under which training programs save weights
FILE_OPTIONS = "MODEL.BACKBONE.WEIGHTS FILE (predict.py: --weights FILE)"
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, by its definition
MAX_START = 1_000  # bytes in which a web page begins, after blank lines
MAX_NAMES = 200  # letters of the names listed in a message, about two lines
# Program -> the file that its models' folders have, and the prefix of a folder as MODEL.BACKBONE.NAME.
FOLDERS = {"open_clip": ("open_clip_config.json", "open_clip:local-dir:"), "transformers": ("config.json", "hf:")}
# Program -> beginnings of the names of its weights that OpenAI's CLIPs lack, and the option that takes the file.
FOREIGN_NAMES = {
    "the authors of Chinese-CLIP": (("bert.",), "--backbone hf:OFA-Sys/chinese-clip-vit-base-patch16, or another size"),
    "transformers": (("vision_model.", "text_model."), "--backbone hf:FOLDER, the folder with its config.json"),
    "open_clip": (("text.", "visual.trunk.", "logit_bias"), f"--backbone open_clip:<architecture> with {FILE_OPTIONS}"),
}
# Names of open_clip's files: of its Hub models, and of its releases, such as vit_b_32-laion2b_e16-af8dbd0c.pth.
OPEN_CLIP_FILES = re.compile(r"open_clip.*|.*-(laion|yfcc|cc12m).*-[0-9a-f]{8}\.pth?")
# Beginning of a file, in lower case -> what was downloaded in place of weights, and what to do.
NOT_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights: `git lfs pull` in its folder fetches them",
    **dict.fromkeys((b"<!doctype", b"<html"), "a web page, not weights: download the file itself"),
}


def read_state_dict(path: Path, published: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors, by name and on the CPU, of a TorchScript archive, ``torch.save`` file or safetensors file.

    The content decides which it is. A TorchScript archive, which contains code, is opened only if its checksum is that
    of one of OpenAI's files. A training program's entry of weights (WRAPPERS) is taken, and named in a note.

    Args:
        published: whether the checksum is already known to be OpenAI's, and not computed.

    Raises:
        UserError: the file is absent, in none of the three formats, a TorchScript archive that is not OpenAI's, of
            another kind (the message names the option that takes it), or would take far more memory than it has bytes.
    """
    if path.is_dir():
        raise UserError(f"{path} is {describe_folder(path)}; {FILE_OPTIONS} takes a file")
    if not path.is_file():
        raise UserError(f"no weights file {path} (MODEL.BACKBONE.WEIGHTS; predict.py: --weights)")
    content = _read_content(path, published)
    state_dict, wrapper = _unwrap(content)
    entries = state_dict.items() if isinstance(state_dict, dict) else [(None, state_dict)]
    if not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in entries):
        kind = f"the entries {list_names(content)}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(f"{path} is not a state dict: it holds something else than named tensors, {kind}")
    state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}  # of nn.DataParallel
    _check_kind(path, content, state_dict)
    if wrapper:
        print(f'Note: the weights in {path} are its entry "{wrapper}"')
    return {key: value for key, value in state_dict.items() if key not in openai.NON_WEIGHT_KEYS}


def _unwrap(content: Any) -> tuple[Any, str]:
    """Return the weights in a file's ``content``, and the name of the entry (WRAPPERS) that holds them, or ""."""
    names = [name for name in WRAPPERS if isinstance(content, dict) and isinstance(content.get(name), dict)]
    name = max(names, key=lambda name: len(content[name]) > 0, default="")  # the first that is not empty
    return (content[name], name) if name else (content, "")


def list_names(entries: Iterable) -> str:
    """Return the first names of a dict's entries, for messages."""
    return shorten(", ".join(map(str, entries)), MAX_NAMES, placeholder=" …") or "no entry at all"


def _read_content(path: Path, published: bool) -> Any:
    """Return the content of a file in one of the three formats, on the CPU; raise as ``read_state_dict`` does."""
    try:
        with open(path, "rb") as file:
            start = file.read(MAX_START).lstrip().lower()
        if beginning := next(filter(start.startswith, NOT_WEIGHTS), b""):
            raise UserError(f"{path} is {NOT_WEIGHTS[beginning]}")
        if _is_safetensors(path):
            return load_file(path)
        if _is_torchscript(path):
            if not published and file_digest(path) not in {url.split("/")[-2] for url in openai.URLS.values()}:
                hint = "If you trust it, save its weights: torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
                raise UserError(f"{path} is a TorchScript archive, which can hold any code, and not OpenAI's. {hint}")
            # PyTorch opens a path in the code page of Windows, which lacks the letters of many user names.
            with open(path, "rb") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated; OpenAI's files need it
                return torch.jit.load(file, map_location="cpu").state_dict()
        return load_weights_only(path)
    except UserError:
        raise
    except Exception as error:  # for a damaged file, torch raises any exception of its readers
        if isinstance(error, UnpicklingError):
            _check_refused_checkpoint(path)
        raise UserError(f"{path} cannot be read as weights (truncated or damaged?): {error_reason(error)}") from error


def _is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors does: the length of a JSON object in 8 bytes, and a brace."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES


def _is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, with compiled code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _check_refused_checkpoint(path: Path) -> None:
    """Raise ``UserError`` if a file that torch.load refuses is a run's checkpoint, as those with a scheduler."""
    try:
        content = safe_torch_load(path)
    except Exception:  # no checkpoint: the caller says why the file cannot be read
        return
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        _check_kind(path, content, content["state_dict"])


def _check_kind(path: Path, content: dict, state_dict: dict) -> None:
    """Raise ``UserError``, which names the option that takes the file, unless it may be an OpenAI CLIP's weights.

    ``state_dict`` is the weights in the file's ``content``.
    """
    if "val_result" in content or any(name.rpartition(".")[2] == "ctx" for name in state_dict):
        raise UserError(
            f"{path} is the checkpoint of a run: MODEL.INIT_WEIGHTS FILE trains on from it, and --model-dir RUN takes "
            f"it with its run. {FILE_OPTIONS} takes the weights of a CLIP, such as those of tools/export_clip.py"
        )
    programs = [p for p, (starts, _) in FOREIGN_NAMES.items() if any(name.startswith(starts) for name in state_dict)]
    # open_clip's smaller architectures have OpenAI's names and shapes, but often another activation.
    if "name" in content or OPEN_CLIP_FILES.fullmatch(path.name) or _is_folder_of("open_clip", path.parent):
        programs.append("open_clip")
    if programs:
        program, option = programs[0], FOREIGN_NAMES[programs[0]][1]
        if _is_folder_of(program, path.parent):
            option = f"--backbone {FOLDERS[program][1]}{path.parent}"
        raise UserError(f"{path} holds weights of another kind, those of {program}: use {option}")


def check_folder(folder: Path, program: str, backbone: str) -> None:
    """Raise ``UserError`` if ``folder``, that of the name ``backbone``, exists and is not of ``program``."""
    if folder.is_dir() and not _is_folder_of(program, folder):
        raise UserError(f"the folder of the backbone {backbone} is {describe_folder(folder)}")


def _is_folder_of(program: str, folder: Path) -> bool:
    """Return whether ``folder`` has the file of the folders of ``program``, a key of FOLDERS or another program."""
    return program in FOLDERS and (folder / FOLDERS[program][0]).is_file()


def describe_folder(folder: Path) -> str:
    """Return what a folder given as weights or as a backbone is, with the option that takes it, for messages."""
    for program, (_, prefix) in FOLDERS.items():
        if _is_folder_of(program, folder):
            return f"the folder of a model of {program}: use --backbone {prefix}{folder}"
    if holds_checkpoints(folder) or any(map(holds_checkpoints, folder.glob("*/"))):
        return f"the folder of a run: use --model-dir {folder}"
    return "a folder without a model"
