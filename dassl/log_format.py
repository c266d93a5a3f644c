"""The result lines of ``log.txt``: writing them in the format that the field's parsers expect, and reading them."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from dassl.utils import UserError

# Parsers of CoOp, Dassl, TaskRes, RPO search for the first line; of MaPLe, PromptSRC, KgCoOp, ProGrad for the second.
END_OF_TRAINING = ("Finish training", "Finished training")
RESULT_HEADER = "=> result"  # Dassl's
NUMBER_PATTERN = re.compile(r"[0-9.eE+-]+")  # float() would accept nan and 1_0, too, which no run logs


def format_result(total: int, correct: int, macro_f1: float) -> str:
    """Return an evaluation's result lines as one text. ``total`` and ``correct`` count images; ``macro_f1`` is in %."""
    accuracy = 100 * correct / total  # two decimals below: with 3,925 test images, one decimal would hide four of them
    return "\n".join(
        (
            RESULT_HEADER,
            f"* total: {total:,}",
            f"* correct: {correct:,}",
            f"* accuracy: {accuracy:.2f}%",
            f"* error: {100 - accuracy:.2f}%",
            f"* macro_f1: {macro_f1:.2f}%",
        )
    )


def format_class_result(label: int, name: str, total: int, correct: int) -> str:
    """Return the result line of the class ``name``; ``total`` and ``correct`` count its test images."""
    name = " ".join(name.splitlines())  # a parser could take a second line for a result
    return f"* class: {label} ({name})\ttotal: {total:,}\tcorrect: {correct:,}\tacc: {100 * correct / total:.2f}%"


def read_result(log: Path, keyword: str = "accuracy", test_log: bool = False) -> float | None:
    """Return the number in a log's last line ``* <keyword>: <number>%``, in percent, or None without such a line.

    Lines before the end of training do not count, so a validation result is never taken for a test result. With
    ``test_log``, for an ``--eval-only`` run, all lines after ``=> result`` count. Raises ``UserError`` if the log
    cannot be read, or a number is not between 0 and 100.
    """
    pattern = re.compile(rf"\* {re.escape(keyword)}: (\S+)%")
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {log}: {error.strerror}") from error
    value, is_final = None, False
    for number, line in enumerate(map(str.strip, lines), start=1):
        is_final = is_final or (line == RESULT_HEADER if test_log else line in END_OF_TRAINING)
        if is_final and (match := pattern.match(line)):
            value = _parse_percent(match[1], f"{log}, line {number}")
    return value


def _parse_percent(text: str, location: str) -> float:
    """Return ``text`` as a number; ``UserError``, which names its place ``location``, if it is not in 0 to 100."""
    with contextlib.suppress(ValueError):
        if NUMBER_PATTERN.fullmatch(text) and 0 <= (value := float(text)) <= 100:
            return value
    raise UserError(f"{location}: {text[:20]}% is not a percentage; the log is damaged")
