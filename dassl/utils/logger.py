"""The file ``log.txt`` in a run's output directory: a copy of the run's standard output."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from .errors import UserError, write_error
from .files import mkdir_if_missing

LOG_FILE = "log.txt"  # Dassl's name, which parsers look for


class Logger:
    """A stream that writes to standard output and to a file."""

    def __init__(self, path: Path):
        """Create or empty ``path``; OSError if that fails. If ``sys.stdout`` is a Logger, use its console."""
        self.path = path
        stdout = sys.stdout
        self.console: TextIO = stdout.console if isinstance(stdout, Logger) else stdout
        # Line buffering: the log of a killed run is complete. The file is open as long as the run lasts.
        self.file = open(path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115

    def write(self, text: str) -> None:
        """Write ``text`` to standard output and the log file; UserError where the file cannot be written."""
        self.console.write(text)
        try:
            self.file.write(text)
        except OSError as error:
            raise write_error(self.path, error) from error

    def close(self, ending: str = "") -> None:
        """Write ``ending`` to the file and close it; an error is ignored."""
        with contextlib.suppress(OSError), self.file:  # ``write`` has raised the same error
            self.file.write(ending)

    def flush(self) -> None:
        """Flush standard output and the log file."""
        self.console.flush()
        self.file.flush()

    def __getattr__(self, name: str):
        """Return an attribute of the standard output, such as ``encoding``."""
        return getattr(self.console, name)


def rotate_file(path: Path) -> None:
    """Rename an earlier run's file, if any, to ``<name>-<time of its last change>``, to tell it from a new run's."""
    if path.exists():
        stamp = time.strftime("%Y-%m-%d-%H-%M-%S", time.localtime(path.stat().st_mtime))
        rotated, copies = path.with_name(f"{path.name}-{stamp}"), 1
        while rotated.exists():
            copies += 1
            rotated = path.with_name(f"{path.name}-{stamp}-{copies}")
        path.rename(rotated)


def setup_logger(output: str | os.PathLike | None = None) -> None:
    """Copy standard output from now on to ``<output>/log.txt``, or to the file ``output`` (.txt or .log).

    An older log is renamed to ``log.txt-<date>``, so ``log.txt`` is always the newest run's. None: no log. A folder
    that cannot be written raises ``UserError``.
    """
    if not output:
        return
    path = Path(output)
    path = path if path.suffix in (".txt", ".log") else path / LOG_FILE
    mkdir_if_missing(path.parent)
    try:
        rotate_file(path)
        sys.stdout = Logger(path)
    except OSError as error:
        raise write_error(path, error) from error


@contextmanager
def tee_stdout(output: str | os.PathLike) -> Iterator[None]:
    """Copy standard output, and any exception, to a log for the body of a ``with``, as ``setup_logger``."""
    original = sys.stdout
    setup_logger(output)
    logger, ending = sys.stdout, ""
    assert isinstance(logger, Logger)  # as ``output`` is not empty
    try:
        yield
    except BaseException as error:
        ending = traceback.format_exc()
        if isinstance(error, (UserError, KeyboardInterrupt)) and str(error):
            ending = f"error: {error}\n" if isinstance(error, UserError) else f"{error}\n"
        raise
    finally:
        sys.stdout = original
        logger.close(ending)
