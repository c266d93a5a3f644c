"""Merging YAML files and command-line overrides into a config, with errors that name the key and the mend."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode as CN

from dassl.utils import UserError, nearest

_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a list",
    list: "a list",
}


def merge_file(cfg: CN, path: str | os.PathLike) -> None:
    """Merge a YAML file into ``cfg``.

    Raises:
        UserError: no such file, not YAML, an unknown key, or a value of the wrong type.
    """
    if not Path(path).is_file():
        folder = Path(path).parent
        known = [p.name for p in folder.glob("*.yaml")] if folder.is_dir() else []
        raise UserError(f"no config file {path}; {nearest(Path(path).name, known)}")
    try:
        loaded = CN.load_cfg(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(f"{path} is not a YAML mapping of config keys: {error}") from error
    for key, value in leaves(loaded):
        _set(cfg, key, value, str(path))


def merge_options(cfg: CN, options: list[str]) -> None:
    """Merge command-line overrides, ``["OPTIM.LR", "0.01", …]``, into ``cfg``; errors as in :func:`merge_file`."""
    if flags := [option for option in options if option.startswith("--")]:
        raise UserError(f"{flags[0]} stands among the KEY VALUE pairs; flags go before them")
    if len(options) % 2:
        raise UserError(f'overrides come in pairs, KEY VALUE; the last one, "{options[-1]}", stands alone')
    for key, value in zip(options[::2], options[1::2], strict=True):
        _set(cfg, key, value, "the command line")


def leaves(node: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a config, written with dots, and their values."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _set(cfg: CN, key: str, value: Any, source: str) -> None:
    known = dict(leaves(cfg))
    if below := [k.removeprefix(f"{key}.") for k in known if k.startswith(f"{key}.")]:
        raise UserError(f"{key} in {source} is a group of keys, not a key: {', '.join(below)}")
    if key not in known:
        raise UserError(f'unknown config key "{key}" in {source}; {_nearest_key(key, known)}')
    old = known[key]
    if isinstance(old, float) and isinstance(CN._decode_cfg_value(value), int) and not _is_bool(value):
        value = float(value)  # OPTIM.LR 1 means 1.0
    if isinstance(old, str) and not isinstance(CN._decode_cfg_value(value), (str, dict, type(None))):
        value = repr(str(value))  # DATASET.FOLDER 2020 is text
    try:
        if CN._decode_cfg_value(value) is None:  # yacs would take it
            raise ValueError
        cfg.merge_from_list([key, value])
    except (ValueError, AssertionError) as error:
        raise UserError(f"{key} in {source} takes {_KINDS[type(old)]}, like {old!r}; got {value!r}") from error


def _is_bool(value: Any) -> bool:
    return isinstance(CN._decode_cfg_value(value), bool)


def _nearest_key(key: str, known: dict[str, Any]) -> str:
    """The most similar key; of the others only the siblings, as there are a hundred."""
    hint = nearest(key, known).partition("Known: ")[0]
    node = key.rpartition(".")[0]
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == node]
    if node and siblings:
        return f"{hint}{node} has {', '.join(siblings)}"
    return hint or "dassl/config/defaults.py lists the keys"


def clean_cfg(cfg: CN, trainer: str, keep: Collection[str] = ()) -> None:
    """Drop the nodes of the trainers that are not in use, so the printed config shows what counts.

    ``keep`` names further nodes that the trainer reads, such as that of the method it builds on.
    """
    for key in list(cfg.TRAINER):
        if key not in ("NAME", *keep) and key.upper() != trainer.upper():
            cfg.TRAINER.pop(key)


def to_dict(cfg: CN) -> dict[str, Any]:
    """The config as nested dicts and lists, for JSON."""
    plain = {k: to_dict(v) if isinstance(v, CN) else v for k, v in cfg.items()}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
