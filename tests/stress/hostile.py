"""Hostile files of all kinds. The program that reads such a file must refuse it by name and run no code in it."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from dassl.utils import UserError
from tests.stress import attacks, forgeries

CASES = {**attacks.CASES, **forgeries.CASES}


def refuse(folder: Path, name: str) -> None:
    """Write and read a hostile file in the empty ``folder``: an error, or a note of its replacement, must name it.

    Raises:
        AssertionError: code was run, or the file was accepted, or the message does not name it.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
            CASES[name](folder)
        assert "Note: " in output.getvalue(), f"{name}: accepted: {output.getvalue()}"
    except UserError as error:
        output = io.StringIO(str(error))
    message = output.getvalue()
    assert not (folder / attacks.MARKER).exists(), f"{name}: executed"
    assert str(folder) in message or folder.as_uri() in message or "http://127.0.0.1" in message, (
        f"{name}: not refused by name: {message}"
    )
