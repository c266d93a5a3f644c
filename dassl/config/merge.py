"""Merge YAML files and command-line overrides into a config; an error names the key, its source and what it takes."""

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

from .defaults import TEXT_OR_LIST_KEYS

# In error messages.
TYPE_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
TYPE_NAMES |= {tuple: "a list", list: "a list"}
# Characters of a value that a message shows, so that it stays on one line of a wide terminal.
MAX_MESSAGE_CHARACTERS = 100
MAX_YAML_ENTRIES = 100_000  # far above any config; nested aliases of a few lines could expand to fill the memory


def merge_file(cfg: CN, path: str | os.PathLike) -> None:
    """Merge the YAML file at ``path`` into ``cfg``, in place. An empty file changes nothing.

    Raises ``UserError`` if the file is missing or not YAML, a key is unknown, or a value has the wrong type.
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
    texts = dict(flatten(read_yaml(path, as_text=True)))
    for key, value in flatten(loaded):
        _merge_value(cfg, key, value, str(path), texts.get(key, value))


def merge_options(cfg: CN, options: list[str]) -> None:
    """Merge the command line's KEY VALUE pairs, ``["OPTIM.LR", "0.01", …]``, into ``cfg``, in place.

    Raises ``UserError`` for an unknown key, a value of a wrong type, a word ``--…``, or an odd number of words.
    """
    if flags := [option for option in options if option.startswith("--")]:
        raise UserError(f"{flags[0]} stands among the KEY VALUE pairs; flags go before them")
    if len(options) % 2:
        raise UserError(f'overrides come in pairs, KEY VALUE; the last one, "{options[-1]}", is not in a pair')
    for key, value in zip(options[::2], options[1::2], strict=True):
        _merge_value(cfg, key, value, "the command line", value)


def merge_flag(cfg: CN, key: str, value: Any) -> None:
    """Set ``key``, such as ``OPTIM.LR``, to the value of a flag. Text stays text, even if it looks like a number.

    Raises ``UserError`` if a config file cannot hold ``value`` (see ``is_serializable``).
    """
    if not is_serializable(value):
        raise UserError(f"{key} on the command line is not text in UTF-8: {format_value(value)}")
    cfg.merge_from_list([key, repr(value) if isinstance(value, str) else value])


def flatten(node: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("A.B.C", value) for each value of a nested config that is no dict; ``prefix`` goes before each key."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _merge_value(cfg: CN, key: str, value: Any, source: str, text: Any) -> None:
    """Set ``key``, such as ``OPTIM.LR``, in ``cfg`` to ``value``, converted to the type of the present value.

    ``text`` is the value before YAML parsed it. ``source``, the file or the command line, is for messages. Raises
    ``UserError`` if the key is unknown or a node, or ``value`` cannot be converted.
    """
    known = dict(flatten(cfg))
    if subkeys := [k.removeprefix(f"{key}.") for k in known if k.startswith(f"{key}.")]:
        raise UserError(f"{key} in {source} is a group of keys, not a key: {', '.join(subkeys)}")
    if key not in known:
        raise UserError(
            f'unknown config key "{abbreviate(key)}" in {source}; {_suggest_key(key[:MAX_MESSAGE_CHARACTERS], known)}'
        )
    current = known[key]
    try:
        decoded = CN._decode_cfg_value(value)
    except (RecursionError, MemoryError):  # text with brackets too deep for Python's parser
        decoded = value
    is_list = key in TEXT_OR_LIST_KEYS and _is_text_list(decoded, text, f"{key} in {source}")
    if key in TEXT_OR_LIST_KEYS and isinstance(current, list) != is_list:
        current = [] if is_list else ""
        node, name = key.split(".")
        cfg[node][name] = current  # yacs keeps the type of the present value
    if isinstance(current, float) and type(decoded) is int and is_serializable(decoded):
        decoded = float(decoded)  # OPTIM.LR 1 means 1.0
    if isinstance(current, str) and not isinstance(decoded, (str, dict, type(None))) and isinstance(text, str):
        decoded = text  # DATASET.FOLDER 007 is text
    try:
        if decoded is None or not is_serializable(decoded):  # yacs would accept it
            raise ValueError
        # yacs evaluates text, and would read '"3"' as the text 3: it gets a literal.
        cfg.merge_from_list([key, repr(decoded) if isinstance(decoded, str) else decoded])
    except (ValueError, AssertionError) as error:
        kind = TYPE_NAMES.get(type(current), "a value")
        raise UserError(f"{key} in {source} takes {kind}, like {current!r}; got {format_value(text)}") from error


def _is_text_list(decoded: Any, text: Any, name: str) -> bool:
    """Return whether the value of a key of TEXT_OR_LIST_KEYS is a list; ``text`` is the value before decoding.

    Raises ``UserError``, which begins with ``name``, for a list with other items than texts.
    """
    is_text = [isinstance(item, str) for item in decoded] if isinstance(decoded, (list, tuple)) else []
    if isinstance(text, str) and decoded != [] and not any(is_text):  # "[{}]" on the command line is a text
        return False
    if not all(is_text):
        raise UserError(f"{name} takes a text or a list of texts; got {format_value(text)}")
    return True


def is_serializable(value: Any) -> bool:
    """Return whether a config file can hold ``value``: a bool, a finite number, UTF-8 text, or a list of these."""
    if isinstance(value, (list, tuple)):
        return all(map(is_serializable, value))
    if isinstance(value, str):
        return "\0" not in value and is_utf8(value)
    try:
        return isinstance(value, (bool, int, float)) and math.isfinite(value)
    except OverflowError:  # an integer above the largest float
        return False


def format_value(value: Any) -> str:
    """Return the ``repr`` of ``value`` for a message, abbreviated as by ``abbreviate``."""
    try:
        return abbreviate(repr(value))
    except ValueError:  # Python converts no integers of more than 4,300 digits to text
        return "a huge number"


def abbreviate(text: str) -> str:
    """Return ``text``; if it exceeds MAX_MESSAGE_CHARACTERS, keep that many, half at each end, around " … "."""
    if len(text) <= MAX_MESSAGE_CHARACTERS:
        return text
    half = MAX_MESSAGE_CHARACTERS // 2
    return f"{text[:half]} … {text[-half:]}"


def _suggest_key(key: str, known: dict[str, Any]) -> str:
    """Return a hint for the unknown ``key``: the most similar key of ``known``, and all keys of the node it names.

    ``known`` maps dotted keys (``flatten``) to values, which are not used.
    """
    hint = suggest_name(key, known).partition("Known: ")[0]
    node = key.rpartition(".")[0]
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == node]
    if node and siblings:
        return f"{hint}{node} has {', '.join(siblings)}"
    return hint or "dassl/config/defaults.py lists the keys"


def clean_cfg(cfg: CN, trainer: str, keep: Collection[str] = ()) -> None:
    """Remove from ``cfg`` each node below TRAINER whose name is neither ``trainer``, in any case, nor in ``keep``.

    ``keep`` is for the nodes of the trainer's base classes. The printed config then shows what the run reads.
    """
    for key in list(cfg.TRAINER):
        if key not in ("NAME", *keep) and key.upper() != trainer.upper():
            cfg.TRAINER.pop(key)


def to_dict(cfg: CN) -> dict[str, Any]:
    """Return ``cfg`` as nested dicts for JSON, with lists in place of tuples."""
    plain = {k: to_dict(v) if isinstance(v, CN) else v for k, v in cfg.items()}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


class _StrictLoader(yaml.SafeLoader):
    """Reads YAML, but refuses duplicate keys, of which YAML takes the last, and aliases that would fill the memory."""

    def get_single_node(self) -> yaml.Node | None:
        """Return the document's root node, or None if the document is empty; raise as ``_count_entries`` does."""
        node = super().get_single_node()
        if node is not None:
            _count_entries(node, {})
        return node


class _TextLoader(_StrictLoader):
    """Reads every scalar, such as ``007`` and ``yes``, as text."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012  merge keys (<<) stay


def read_yaml(path: str | os.PathLike, as_text: bool = False) -> Any:
    """Return the content of the YAML file at ``path``, None if it is empty; with ``as_text``, every scalar as text.

    Raises ``UserError`` if the file cannot be read, is not YAML, has duplicate keys, or its aliases expand to
    MAX_YAML_ENTRIES.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _TextLoader if as_text else _StrictLoader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # PyYAML raises more than YAMLError: a KeyError for a bad !!bool
        raise UserError(f"{path} is not YAML: {error}") from error


def _count_entries(node: yaml.Node, sizes: dict[yaml.Node, int]) -> int:
    """Return the number of nodes in the tree below ``node``, itself included, with aliases expanded.

    ``sizes``, empty at first, collects the results by node. Raises ``yaml.YAMLError`` from MAX_YAML_ENTRIES nodes on,
    or if a mapping has duplicate keys.
    """
    if node not in sizes:
        sizes[node] = MAX_YAML_ENTRIES  # a node that contains itself is refused
        children = []
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            if duplicates := [key for key, count in Counter(keys).items() if count > 1]:
                raise yaml.YAMLError(f'the key "{abbreviate(duplicates[0])}" appears more than once{node.start_mark}')
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        sizes[node] = 1 + sum(_count_entries(child, sizes) for child in children)
    if sizes[node] >= MAX_YAML_ENTRIES:
        raise yaml.YAMLError(f"its aliases expand to more than {MAX_YAML_ENTRIES:,} entries")
    return sizes[node]
