"""The trials that a sweep's YAML file means: one for each point of its grids."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from dassl.config.merge import format_value, is_serializable, read_yaml
from dassl.engine.record import is_finished
from dassl.utils import UserError, check_availability

# The keys of a sweep and of a run in it, with the type of their values; those that must be there.
SWEEP_KEYS = {"output": str, "threads": int, "arguments": str, "runs": list}
RUN_KEYS = {"folder": str, "arguments": str, "grid": dict}
REQUIRED_SWEEP_KEYS, REQUIRED_RUN_KEYS = {"output", "runs"}, {"folder"}
MAX_RUNS, MAX_THREADS = 100_000, 1_024
SEED_AXES = ("seed", "SEED")  # what --seeds replaces
OUTPUT_FIELD = "output"  # in the braces of arguments: the sweep's folder
FIELD_PATTERN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")  # str.format's, but a dot is part of the name


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: its folder, the arguments of ``train.py``, and the KEY VALUE pairs that end them."""

    folder: Path
    arguments: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    @property
    def command(self) -> tuple[str, ...]:
        return (*self.arguments, *self.overrides)

    @property
    def finished(self) -> bool:
        """Whether the folder holds the record of a run of this very command."""
        return is_finished(self.folder, self.command)

    @property
    def model(self) -> Path | None:
        """The folder of the run whose model this one evaluates."""
        return next((Path(folder) for flag, folder in pairwise(self.command) if flag == "--model-dir"), None)


def read_sweep(path: Path) -> dict:
    """Return the YAML of a sweep.

    Raises:
        UserError: no such file, not YAML, or keys that are missing, unknown or of the wrong type.
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


def _check_keys(node: object, types: dict[str, type], needed: set[str], place: str) -> None:
    """Raise :class:`UserError` unless ``node`` has the ``needed`` keys, and no others than those of ``types``."""
    if not isinstance(node, dict) or needed - set(node):
        raise UserError(f"{place} must have the keys {', '.join(sorted(needed))}")
    for key, value in node.items():
        check_availability(key, types, f"key in {place}:")
        if type(value) is not types[key]:
            raise UserError(f"{place}: {key} takes a {types[key].__name__}; got {format_value(value)}")


def build_trials(sweep: dict, output: str, root: str, seeds: list[str], overrides: list[str]) -> list[Trial]:
    """Return a trial for every point of every grid. ``seeds`` replaces the axis ``seed`` (or ``SEED``).

    Raises:
        UserError: braces that name no axis, two runs with one folder, a folder outside that of the sweep, an override
            of an axis, an axis ``output``, more runs than anybody waits for.
    """
    trials: dict[Path, Trial] = {}
    output = str(Path(output or sweep["output"]))
    for run in sweep["runs"]:
        axes = run.get("grid", {}).items()
        grid = {str(axis): seeds if seeds and axis in SEED_AXES else values for axis, values in axes}
        if fixed := [key for key in overrides[::2] if key in grid]:
            raise UserError(f"{fixed[0]} is an axis of the grid of {run['folder']}, so it cannot be set for every run")
        if OUTPUT_FIELD in grid:
            raise UserError(f"{{{OUTPUT_FIELD}}} is the sweep's folder; give that axis of {run['folder']} another name")
        if (count := math.prod(map(len, grid.values()))) > MAX_RUNS:
            raise UserError(f"the grid of {run['folder']} makes {count:,} runs; a sweep has {MAX_RUNS:,} at most")
        words = _split_words(f"{sweep.get('arguments', '')} {run.get('arguments', '')}")
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, map(str, values), strict=True))
            folder = _run_folder(output, _substitute(run["folder"], point))
            if folder in trials:
                several = " and ".join(f"{{{axis}}}" for axis, values in grid.items() if len(values) > 1) or "an axis"
                raise UserError(f'two runs have the folder {folder}; put {several} into "{run["folder"]}"')
            keys = [word for axis, value in point.items() if "." in axis or axis.isupper() for word in (axis, value)]
            arguments = ["--output-dir", str(folder), *(["--root", root] if root else [])]
            arguments += [_substitute(word, {**point, OUTPUT_FIELD: output}) for word in words]
            trials[folder] = Trial(folder, tuple(arguments), (*keys, *overrides))
    return list(trials.values())


def _run_folder(output: str, name: str) -> Path:
    """Return the folder of a run, below that of the sweep."""
    if ".." in Path(name).parts or Path(name).is_absolute() or not is_serializable(name):
        raise UserError(f"a run's folder is a path below {output}; {format_value(name)} is none")
    return Path(output, name)


def _substitute(text: str, point: dict[str, str]) -> str:
    """Put a point of the grid into the ``{axis}`` of a text; ``{{`` and ``}}`` are plain braces."""

    def value(match: re.Match) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] not in point:
            axes = ", ".join(point) or "none"
            raise UserError(f'"{text}" names something in braces that is no axis of its grid ({axes})')
        return point[match[1]]

    return FIELD_PATTERN.sub(value, text)


def _split_words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"the arguments {text} cannot be split into words: {error}") from error
