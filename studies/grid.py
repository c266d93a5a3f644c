"""The file of a sweep, and the trials that it describes: one for each point of each grid."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import train
from dassl.config.merge import format_value, is_serializable, read_yaml
from dassl.utils import UserError, check_availability

if TYPE_CHECKING:  # it loads PyTorch, which a list of trials does not need
    from trainers.inputs import CurrentInputs

# The keys of a sweep's file and of each entry in its "runs", with the types of their values, as in tools/sweep.py.
SWEEP_KEYS: dict[str, type] = {"output": str, "threads": int, "arguments": str, "runs": list}
RUN_KEYS: dict[str, type] = {"folder": str, "arguments": str, "grid": dict}
REQUIRED_SWEEP_KEYS, REQUIRED_RUN_KEYS = {"output", "runs"}, {"folder"}  # without these, no trial has a folder
MAX_RUNS = 100_000  # trials of a grid: a larger grid is a slip, and would fill the memory before the first trial
MAX_THREADS = 1_024  # threads of a trial: a larger number is a slip, and PyTorch would try to start them
SEED_AXES = ("seed", "SEED")  # the axes that --seeds replaces: the field of --seed {seed}, and the config key
OUTPUT_FIELD = "output"  # {output} in arguments is the sweep's folder
FIELD_PATTERN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")  # str.format's fields, but a name may contain dots


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: its folder, the arguments of ``train.py``, and the KEY VALUE pairs after them."""

    folder: Path
    arguments: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    @property
    def command(self) -> tuple[str, ...]:
        """All arguments of ``train.py``: ``arguments``, then ``overrides``."""
        return (*self.arguments, *self.overrides)

    @property
    def model_dir(self) -> Path | None:
        """The value of ``--model-dir``, the folder of the run whose model this trial evaluates; or None."""
        return next((Path(folder) for flag, folder in pairwise(self.command) if flag == "--model-dir"), None)

    def find_rerun_reason(self, inputs: CurrentInputs | None = None) -> str:
        """Return why the trial must run, as ``train.find_rerun_reason``; "" if it is finished."""
        return train.find_rerun_reason(self.folder, self.command, inputs)


def read_sweep(path: Path) -> dict:
    """Return the content of a sweep's YAML file, with its keys and types checked.

    Raises:
        UserError: the file is absent or not YAML; a key is missing or unknown; a value has the wrong type or range.
    """
    sweep = read_yaml(path)
    _check_keys(sweep, SWEEP_KEYS, REQUIRED_SWEEP_KEYS, f"{path}")
    for number, run in enumerate(sweep["runs"], start=1):
        _check_keys(run, RUN_KEYS, REQUIRED_RUN_KEYS, f"{path}, run {number}")
        for axis, values in run.get("grid", {}).items():
            place = f"{path}, run {number}: the axis {axis} of a grid"
            if not isinstance(values, list) or not values:
                raise UserError(f"{place} takes a list; got {format_value(values)}")
            if wrong := [value for value in values if not is_serializable(value)]:
                raise UserError(f"{place} takes text, numbers and lists of these; got {format_value(wrong[0])}")
    if not sweep["runs"] or not 0 <= sweep.get("threads", 0) <= MAX_THREADS:
        raise UserError(f"{path} needs at least one run, and threads from 0 (all cores) to {MAX_THREADS}")
    return sweep


def _check_keys(node: object, types: Mapping[str, type], required: set[str], place: str) -> None:
    """Raise ``UserError`` unless ``node`` is a dict with all ``required`` keys and only keys of ``types``.

    ``types`` has the exact type of each key's value. The message names ``place``, the file and the entry in it.
    """
    if not isinstance(node, dict) or required - set(node):
        raise UserError(f"{place} must have the keys {', '.join(sorted(required))}")
    for key, value in node.items():
        check_availability(key, types, f"key in {place}:")
        if type(value) is not types[key]:
            raise UserError(f"{place}: {key} takes a {types[key].__name__}; got {format_value(value)}")


def build_trials(sweep: dict, output: str, root: str, seeds: list[str], overrides: list[str]) -> list[Trial]:
    """Return a trial (run of ``train.py``) for each point of each grid (no grid: one point), in the file's order.

    Args:
        sweep: the content of the file, from ``read_sweep``.
        output: the sweep's folder; empty: the one in the file.
        root: the value of ``--root`` for every trial; empty: no such flag.
        seeds: values that replace those of each axis ``seed`` or ``SEED``; empty: the file's values.
        overrides: KEY VALUE pairs for every trial, as a flat list.

    Raises:
        UserError: a field in braces is no axis; two trials have one folder, or a folder is not below the sweep's; an
            override sets an axis; an axis is called ``output``; a grid has more than MAX_RUNS points.
    """
    trials: dict[Path, Trial] = {}
    output = str(Path(output or sweep["output"]))
    for run in sweep["runs"]:
        axes = run.get("grid", {}).items()
        grid = {str(axis): seeds if seeds and axis in SEED_AXES else values for axis, values in axes}
        if clash := [key for key in overrides[::2] if key in grid]:
            raise UserError(f"{clash[0]} is an axis of the grid of {run['folder']}, so it cannot be set for every run")
        if OUTPUT_FIELD in grid:
            raise UserError(f"{{{OUTPUT_FIELD}}} is the sweep's folder; give that axis of {run['folder']} another name")
        if (count := math.prod(map(len, grid.values()))) > MAX_RUNS:
            raise UserError(f"the grid of {run['folder']} makes {count:,} runs; a sweep has {MAX_RUNS:,} at most")
        words = _split_words(f"{sweep.get('arguments', '')} {run.get('arguments', '')}")
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, map(str, values), strict=True))
            folder = _run_folder(output, _substitute(run["folder"], point))
            if folder in trials:
                fields = " and ".join(f"{{{axis}}}" for axis, values in grid.items() if len(values) > 1) or "an axis"
                raise UserError(f'two runs have the folder {folder}; put {fields} into "{run["folder"]}"')
            keys = [word for axis, value in point.items() if "." in axis or axis.isupper() for word in (axis, value)]
            arguments = ["--output-dir", str(folder), *(["--root", root] if root else [])]
            arguments += [_substitute(word, {**point, OUTPUT_FIELD: output}) for word in words]
            trials[folder] = Trial(folder, tuple(arguments), (*keys, *overrides))
    return list(trials.values())


def _run_folder(output: str, name: str) -> Path:
    """Return ``output``/``name``; ``UserError`` unless ``name`` is a relative path that stays below ``output``."""
    if ".." in Path(name).parts or Path(name).is_absolute() or not is_serializable(name):
        raise UserError(f"a run's folder must be a path below {output}; got {format_value(name)}")
    return Path(output, name)


def _substitute(text: str, point: dict[str, str]) -> str:
    """Return ``text`` with each ``{axis}`` replaced by its value in ``point``, and ``{{``, ``}}`` by single braces.

    Raises:
        UserError: a single brace, or a field whose name is not in ``point``.
    """

    def replacement(match: re.Match) -> str:
        """Return the text that replaces one match of FIELD_PATTERN."""
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] not in point:
            axes = ", ".join(point) or "none"
            raise UserError(f'"{text}" has a field in braces that is not an axis of its grid ({axes})')
        return point[match[1]]

    return FIELD_PATTERN.sub(replacement, text)


def _split_words(text: str) -> list[str]:
    """Split arguments into words as a shell does; ``UserError`` where a quotation mark is not closed.

    A backslash is a letter, as in the paths of Windows.
    """
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    try:
        return list(lexer)
    except ValueError as error:
        raise UserError(f"the arguments {text} cannot be split into words: {error}") from error
