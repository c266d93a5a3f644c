"""What a run leaves of its results: the lines of ``log.txt``, in the format that the field's parsers expect."""

from __future__ import annotations

import contextlib
import math
import re
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from .errors import UserError
from .files import read_json

# Both spellings are looked for by parsers in use (CoOp, Dassl, TaskRes, RPO; MaPLe, PromptSRC, KgCoOp, ProGrad).
END_OF_TRAINING = ("Finish training", "Finished training")
RESULT = "=> result"
RECORD = "result.json"  # written last, so its presence is what tells a finished run
NUMBER = re.compile(r"[0-9.eE+-]+")  # of Python's floats those that a log has: neither nan nor 1_0
KINDS = {"config": dict, "weights": dict, "classnames": list, "command": list}  # of a record's entries


def result_lines(total: int, correct: int, macro_f1: float) -> str:
    """The lines of one evaluation. Percentages have two decimals: with one, 3,925 test images would hide four.

    Args:
        macro_f1: percent.
    """
    accuracy = 100 * correct / total
    return "\n".join(
        (
            RESULT,
            f"* total: {total:,}",
            f"* correct: {correct:,}",
            f"* accuracy: {accuracy:.2f}%",
            f"* error: {100 - accuracy:.2f}%",
            f"* macro_f1: {macro_f1:.2f}%",
        )
    )


def class_line(label: int, name: str, total: int, correct: int) -> str:
    name = " ".join(name.splitlines())  # a line of its own could be taken for a result
    return f"* class: {label} ({name})\ttotal: {total:,}\tcorrect: {correct:,}\tacc: {100 * correct / total:.2f}%"


def read_result(log: Path, keyword: str = "accuracy", test_log: bool = False) -> float | None:
    """The last ``* <keyword>: <number>%`` of a log, in percent.

    Only what follows the end of training counts, so an interrupted run's validation result is never taken for a test
    result; with ``test_log`` (an ``--eval-only`` run, which trains nothing) whatever follows ``=> result``.
    Returns None where there is no such line.

    Raises:
        UserError: the log cannot be read, or that number is no percentage.
    """
    pattern = re.compile(rf"\* {re.escape(keyword)}: (\S+)%")
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {log}: {error.strerror}") from error
    value, reached = None, False
    for number, line in enumerate(map(str.strip, lines), start=1):
        reached = reached or (line == RESULT if test_log else line in END_OF_TRAINING)
        if reached and (match := pattern.match(line)):
            value = _percent(match[1], f"{log}, line {number}")
    return value


def _percent(text: str, where: str) -> float:
    with contextlib.suppress(ValueError):
        if NUMBER.fullmatch(text) and 0 <= (value := float(text)) <= 100:
            return value
    raise UserError(f"{where}: {text[:20]}% is no percentage; the log is damaged")


def read_record(folder: Path) -> dict:
    """The record of the run in ``folder``; :class:`UserError` where there is none, or a damaged one."""
    record = read_json(folder / RECORD)
    if not isinstance(record, dict):
        raise UserError(f"{folder / RECORD} is damaged: it is not a record of a run")
    for key, kind in KINDS.items():
        if not isinstance(record.get(key, kind()), kind):
            raise UserError(f"{folder / RECORD} is damaged: its {key} is not what a run writes")
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
    done = Path(folder, RECORD).stat().st_mtime
    return record.get("command") == list(command) and all(f.is_file() and f.stat().st_mtime <= done for f in files)


def interval95(values: Sequence[float]) -> float:
    """Half the width of the 95% confidence interval of the mean of a few runs (Student's t); NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
