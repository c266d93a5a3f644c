"""The record of a run, ``result.json``: reading it, and which code the run was made with."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from dassl.utils import UserError, read_json

RECORD_FILE = "result.json"  # written last, so its presence is what tells a finished run
RECORD_TYPES = {"config": dict, "weights": dict, "classnames": list, "command": list}  # of a record's entries
GIT_TIMEOUT = 5  # on a slow disk the record does without


def read_record(folder: Path) -> dict:
    """The record of the run in ``folder``; :class:`UserError` where there is none, or a damaged one."""
    record = read_json(folder / RECORD_FILE)
    if not isinstance(record, dict):
        raise UserError(f"{folder / RECORD_FILE} is damaged: it is not a record of a run")
    for key, kind in RECORD_TYPES.items():
        if not isinstance(record.get(key, kind()), kind):
            raise UserError(f"{folder / RECORD_FILE} is damaged: its {key} is not what a run writes")
    return record


def is_finished(folder: str | Path, command: Sequence[str]) -> bool:
    """Whether ``folder`` holds the record of a finished run of this very ``command`` (the arguments of train.py).

    A config file or a checkpoint in ``--model-dir`` that has changed since then makes it another run. A damaged record
    is as good as none.
    """
    try:
        record = read_record(Path(folder))
    except UserError:
        return False
    given = [(flag, Path(path)) for flag, path in pairwise(command)]
    files = [path for flag, path in given if flag in ("--config-file", "--dataset-config-file")]
    files += [file for flag, path in given if flag == "--model-dir" for file in path.glob("*/model*.pth.tar*")]
    done = Path(folder, RECORD_FILE).stat().st_mtime
    return record.get("command") == list(command) and all(f.is_file() and f.stat().st_mtime <= done for f in files)


def code_version(root: Path, parts: Sequence[str]) -> dict:
    """Which code a program is.

    Args:
        parts: the folders and files of ``root`` that it is made of.

    Returns:
        ``sha256`` over the paths and contents of the Python files in ``parts``, whatever their line ends; in a git
        checkout also ``commit``, and whether those files have been ``modified`` since.
    """
    files = [path for part in parts for path in (root / part, *(root / part).rglob("*.py"))]
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in files if path.is_file()):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return {**_git_commit(root, parts), "sha256": digest.hexdigest()}


def _git_commit(root: Path, parts: Sequence[str]) -> dict:
    if not (root / ".git").exists():  # a folder above may be a checkout of something else
        return {}
    command = ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--", *parts]
    try:
        status = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=GIT_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, or it does not trust the folder's owner
        return {}
    lines = status.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), None)
    return {"commit": commit, "modified": any(not line.startswith("#") for line in lines)}
