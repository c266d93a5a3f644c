"""Merging YAML files and command-line overrides into a config, with errors that name the key and the hint."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode as CN

from dassl.utils import UserError, is_utf8, suggest_name

TYPE_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a list",
    list: "a list",
}
MAX_SHOWN = 100  # letters of a value that a message shows
MAX_YAML_ENTRIES = 100_000  # entries of a YAML file, aliases written out


def merge_file(cfg: CN, path: str | os.PathLike) -> None:
    """Merge a YAML file into ``cfg``.

    Raises:
        UserError: no such file, not YAML, an unknown key, or a value of the wrong type.
    """
    if not Path(path).is_file():
        folder = Path(path).parent
        known = [p.name for p in folder.glob("*.yaml")] if folder.is_dir() else []
        raise UserError(f"no config file {path}; {suggest_name(Path(path).name, known)}")
    loaded = read_yaml(path)
    if loaded is None:  # an empty file
        return
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is not a YAML mapping of config keys")
    written = dict(flatten(read_yaml(path, as_text=True)))
    for key, value in flatten(loaded):
        _merge_value(cfg, key, value, str(path), written.get(key, value))


def merge_options(cfg: CN, options: list[str]) -> None:
    """Merge command-line overrides, ``["OPTIM.LR", "0.01", …]``, into ``cfg``; errors as in :func:`merge_file`."""
    if flags := [option for option in options if option.startswith("--")]:
        raise UserError(f"{flags[0]} stands among the KEY VALUE pairs; flags go before them")
    if len(options) % 2:
        raise UserError(f'overrides come in pairs, KEY VALUE; the last one, "{options[-1]}", stands alone')
    for key, value in zip(options[::2], options[1::2], strict=True):
        _merge_value(cfg, key, value, "the command line", value)


def merge_flag(cfg: CN, key: str, value: Any) -> None:
    """Put what a flag gives into ``cfg``: text as it is, whatever it looks like."""
    if not is_serializable(value):
        raise UserError(f"{key} on the command line is no text in UTF-8: {format_value(value)}")
    cfg.merge_from_list([key, repr(value) if isinstance(value, str) else value])


def flatten(node: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a config, written with dots, and their values."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _merge_value(cfg: CN, key: str, value: Any, source: str, written: Any) -> None:
    """Put a value into ``cfg``; ``written`` is its text in ``source``, before YAML took it for something."""
    known = dict(flatten(cfg))
    if below := [k.removeprefix(f"{key}.") for k in known if k.startswith(f"{key}.")]:
        raise UserError(f"{key} in {source} is a group of keys, not a key: {', '.join(below)}")
    if key not in known:
        raise UserError(f'unknown config key "{abbreviate(key)}" in {source}; {_suggest_key(key[:MAX_SHOWN], known)}')
    old = known[key]
    try:
        decoded = CN._decode_cfg_value(value)
    except (RecursionError, MemoryError):  # brackets too deep for Python's parser are text
        decoded = value
    if isinstance(old, float) and type(decoded) is int and is_serializable(decoded):
        decoded = float(decoded)  # OPTIM.LR 1 means 1.0
    if isinstance(old, str) and not isinstance(decoded, (str, dict, type(None))) and isinstance(written, str):
        decoded = written  # DATASET.FOLDER 007 is text
    try:
        if decoded is None or not is_serializable(decoded):  # yacs would take it
            raise ValueError
        # Text goes as its literal, as yacs would take '"3"' for a number.
        cfg.merge_from_list([key, repr(decoded) if isinstance(decoded, str) else decoded])
    except (ValueError, AssertionError) as error:
        kind = TYPE_NAMES.get(type(old), "a value")
        raise UserError(f"{key} in {source} takes {kind}, like {old!r}; got {format_value(written)}") from error


def is_serializable(value: Any) -> bool:
    """Whether a value is what a config holds and any file can: text in UTF-8, finite numbers, lists of these."""
    if isinstance(value, (list, tuple)):
        return all(map(is_serializable, value))
    if isinstance(value, str):
        return "\0" not in value and is_utf8(value)
    try:
        return isinstance(value, (bool, int, float)) and math.isfinite(value)
    except OverflowError:  # an integer that no float is as large as
        return False


def format_value(value: Any) -> str:
    """A value as a message shows it."""
    try:
        return abbreviate(repr(value))
    except ValueError:  # Python does not write down integers of more than 4,300 digits
        return "a huge number"


def abbreviate(text: str) -> str:
    """A text as a message shows it: without its middle, where it is long."""
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN // 2]} … {text[-MAX_SHOWN // 2 :]}"


def _suggest_key(key: str, known: dict[str, Any]) -> str:
    """The most similar key; of the others only the siblings, as there are a hundred."""
    hint = suggest_name(key, known).partition("Known: ")[0]
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


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML takes the last, and aliases that would fill the memory."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count_entries(node, {})
        return node


class _TextLoader(_StrictLoader):
    """Takes ``007`` and ``yes`` for text, as they are written."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012  the key <<


def read_yaml(path: str | os.PathLike, as_text: bool = False) -> Any:
    """What a YAML file holds; ``as_text``, with all of its values as they are written.

    Raises:
        UserError: the file cannot be read, or is not YAML; has a key twice in a mapping, or aliases of aliases without
            end.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _TextLoader if as_text else _StrictLoader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # PyYAML raises almost anything; for a bad !!bool, KeyError
        raise UserError(f"{path} is not YAML: {error}") from error


def _count_entries(node: yaml.Node, sizes: dict[yaml.Node, int]) -> int:
    """How many entries a node has, aliases written out; ``sizes`` holds those that are known.

    Raises:
        yaml.YAMLError: they are too many, or a key is there twice.
    """
    if node not in sizes:
        sizes[node] = MAX_YAML_ENTRIES  # until it is known: a node within itself
        parts = []
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            if twice := [key for key, count in Counter(keys).items() if count > 1]:
                raise yaml.YAMLError(f'the key "{abbreviate(twice[0])}" is there twice{node.start_mark}')
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        sizes[node] = 1 + sum(_count_entries(part, sizes) for part in parts)
    if sizes[node] >= MAX_YAML_ENTRIES:
        raise yaml.YAMLError(f"its aliases, written out, are more than {MAX_YAML_ENTRIES:,} entries")
    return sizes[node]
