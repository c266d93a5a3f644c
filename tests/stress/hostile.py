"""Hostile files: each is made and given to the reader it is meant for. All must be refused by name, and run nothing."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from dassl.utils import UserError
from tests.stress import attacks, forgeries

CASES = {**attacks.CASES, **forgeries.CASES}  # what a file is -> a function that makes it in a folder and has it read


def refuse(folder: Path, name: str) -> str:
    """Make a case in the empty ``folder`` and return the error that it ends in, or the note (of what is made anew).

    Raises:
        AssertionError: something was run, or the file was accepted, or the message does not name it.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            CASES[name](folder)
        assert "Note: " in said.getvalue(), f"{name}: accepted: {said.getvalue()}"
    except UserError as error:
        said = io.StringIO(str(error))
    message = said.getvalue()
    assert not (folder / attacks.MARKER).exists(), f"{name}: executed"
    assert str(folder) in message or "http://127.0.0.1" in message, f"{name}: not refused by name: {message}"
    return message


def run(folder: Path) -> tuple[int, int]:
    """How many cases are refused, and how many there are."""
    refused = 0
    for count, name in enumerate(CASES):
        (place := folder / str(count)).mkdir(parents=True)
        try:
            refuse(place, name)
            refused += 1
        except Exception as error:  # a traceback is no refusal
            print(f"{name}: {type(error).__name__}: {error}")
    return refused, len(CASES)
