"""Hostile files: each is made and given to the reader it is meant for. All must be refused by name, and run nothing."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from dassl.utils import UserError
from tests.stress import attacks, forgeries

CASES = {**attacks.CASES, **forgeries.CASES}


def refuse(folder: Path, name: str) -> None:
    """Make a case in the empty ``folder``: it ends in an error, or in a note (of what is made anew), that names it.

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
