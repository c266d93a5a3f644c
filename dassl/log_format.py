"""The lines of ``log.txt`` that hold results, in the format that the field's parsers expect; and reading them back."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from dassl.utils import UserError

# Both spellings are looked for by parsers in use (CoOp, Dassl, TaskRes, RPO; MaPLe, PromptSRC, KgCoOp, ProGrad).
END_OF_TRAINING = ("Finish training", "Finished training")
RESULT_HEADER = "=> result"
NUMBER_PATTERN = re.compile(r"[0-9.eE+-]+")  # of Python's floats those that a log has: neither nan nor 1_0


def format_result(total: int, correct: int, macro_f1: float) -> str:
    """The lines of one evaluation. Percentages have two decimals: with one, 3,925 test images would hide four.

    Args:
        macro_f1: percent.
    """
    accuracy = 100 * correct / total
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
        reached = reached or (line == RESULT_HEADER if test_log else line in END_OF_TRAINING)
        if reached and (match := pattern.match(line)):
            value = _parse_percent(match[1], f"{log}, line {number}")
    return value


def _parse_percent(text: str, where: str) -> float:
    with contextlib.suppress(ValueError):
        if NUMBER_PATTERN.fullmatch(text) and 0 <= (value := float(text)) <= 100:
            return value
    raise UserError(f"{where}: {text[:20]}% is no percentage; the log is damaged")
