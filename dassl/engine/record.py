"""The record of a run, ``result.json``: reading it, and the version of the code that goes into it."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import subprocess
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from dassl.config.merge import flatten
from dassl.config.run_config import CONFIG_FILE
from dassl.utils import UserError, read_json

RECORD_FILE = "result.json"  # a run writes it last, so that only finished runs have one
PREDICTIONS_FILE = "predictions.csv"  # of the evaluation whose results the record has; written just before it
# Types of entries that we read.
RECORD_TYPES: dict[str, type] = dict.fromkeys(("config", "weights", "splits", "machine", "code", "versions"), dict)
RECORD_TYPES |= dict.fromkeys(("classnames", "command", "started_from", "forced", "models"), list)
SPLIT_FOLDER = "split_fewshot"  # in a data set's folder: its stored few-shot splits
GIT_TIMEOUT = 5  # seconds: git takes a fraction of one, and on a slow disk the record goes without a commit


def read_record(folder: Path, name: str = RECORD_FILE) -> dict:
    """Return the record, ``name``, of the run in ``folder``; ``UserError`` if it is missing or damaged."""
    record = read_json(folder / name)
    if not isinstance(record, dict):
        raise UserError(f"{folder / name} is damaged: it is not a record of a run")
    for key, type_ in RECORD_TYPES.items():
        if not isinstance(record.get(key, type_()), type_):
            raise UserError(f"{folder / name} is damaged: its {key} is not what a run writes")
    return record


def read_training_record(folder: Path) -> dict:
    """Return the record of the run in ``folder``: of its training, not of an evaluation that has taken its place.

    Earlier versions let ``--eval-only`` replace the record of a training run in its own folder. Then this is the newest
    renamed record (``result.json-<date>``) of training; {} if there is none, as the evaluation may have had other
    classes. ``UserError`` if ``folder`` has no record or a damaged one.
    """
    record = read_record(folder)
    if not is_evaluation(record) or not (folder / CONFIG_FILE).is_file():
        return record  # the second: a run that only evaluated
    renamed = sorted(folder.glob(f"{RECORD_FILE}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    records = (read_record(folder, path.name) for path in renamed)
    return next((each for each in records if not is_evaluation(each)), {})


def is_evaluation(record: dict) -> bool:
    """Return whether a record is of a run that only evaluated (``--eval-only``). Old records have only the command."""
    eval_only = record.get("eval_only")
    if isinstance(eval_only, bool):
        return eval_only
    return any(str(word).startswith("--ev") for word in record.get("command", ()))  # argparse completes flags


def find_staleness(folder: str | Path, command: Sequence[str]) -> str:
    """Return why ``folder`` has no valid record, ``result.json``, of a run with the arguments ``command``; "": it has.

    A record is valid if none of the run's files (``_list_input_files``) is newer, and no config file is missing.
    """
    try:
        record = read_record(Path(folder))
    except UserError:
        return "it has no record"
    if record.get("command") != list(command):
        return "its command has changed"
    end = Path(folder, RECORD_FILE).stat().st_mtime
    for file in _list_input_files(record, command):
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_mtime > end:
            return f"{file} is newer than its record"
    return ""


def _list_input_files(record: dict, command: Sequence[str]) -> Iterator[Path]:
    """Yield the files on which a run depends, beside its images: config files, whether they exist or not; checkpoints.

    Also yields its few-shot split and the images in it, and each value of its config that is the path of a file, as it
    is or in the data set's folder (DATASET.CLASSNAMES, MODEL.INIT_WEIGHTS, …).
    """
    for flag, value in pairwise(command):
        if flag in ("--config-file", "--dataset-config-file"):
            yield Path(value)
        elif flag == "--model-dir":
            places = Path(value).glob("*/model*.pth.tar*"), Path(value).glob("model*.pth.tar*"), [Path(value)]
            yield from (path for place in places for path in place if path.is_file())
    yield from _list_shots(record)
    config = dict(flatten(record.get("config", {})))
    folder = os.path.join(*(str(config.get(f"DATASET.{key}", "")) for key in ("ROOT", "FOLDER")))
    split = record.get("few_shot_split")
    values = [*config.values(), split.get("file") if isinstance(split, dict) else None]
    for path in (os.path.join(base, value) for value in values if isinstance(value, str) for base in ("", folder)):
        path = os.path.expanduser(path) if path.startswith("~/") else path
        if os.path.isfile(path):
            yield Path(path)


def _list_shots(record: dict) -> Iterator[Path]:
    """Yield the images of a run's stored few-shot split that exist; nothing if it is gone, or has another form."""
    split = record.get("few_shot_split")
    path = Path(str(split.get("file"))) if isinstance(split, dict) else None
    if path is None or path.parent.name != SPLIT_FOLDER:
        return
    with contextlib.suppress(UserError, TypeError, AttributeError, ValueError, OSError):
        lists = [entries for entries in read_json(path).values() if isinstance(entries, list)]
        for name, *_ in itertools.chain(*lists):
            if (image := path.parent.parent / name).is_file():
                yield image


def code_version(root: Path, paths: Sequence[str]) -> dict:
    """Return the version of the Python files in ``paths``, folders and files in ``root``, for ``result.json``.

    Its entries: ``sha256`` over the files' names and contents, with line ends as ``\\n``; in a git checkout also
    ``commit``, and ``modified``: whether a file in ``paths`` differs from the commit.
    """
    files = [file for path in paths for file in (root / path, *(root / path).rglob("*.py"))]
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(root).as_posix(), file) for file in files if file.is_file()):
        content = file.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return {**_git_commit(root, paths), "sha256": digest.hexdigest()}


def _git_commit(root: Path, paths: Sequence[str]) -> dict:
    """Return ``commit`` and ``modified`` of ``code_version``; {} if ``root`` is no checkout, or git fails."""
    if not (root / ".git").exists():  # a parent folder may be a checkout of another project
        return {}
    command = ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--", *paths]
    try:
        status = subprocess.run(command, cwd=root, capture_output=True, timeout=GIT_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):  # git is missing, too slow, or does not trust the folder's owner
        return {}
    lines = status.stdout.decode("utf-8", "replace").splitlines()  # names of branches and files
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), None)
    return {"commit": commit, "modified": any(not line.startswith("#") for line in lines)}
