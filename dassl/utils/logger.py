"""``log.txt``: everything a run prints, kept beside its results."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError, write_error
from .files import mkdir_if_missing


class Logger:
    """Standard output that is also written to a file."""

    def __init__(self, path: Path):
        self.path = path
        console = sys.stdout
        self.console = console.console if isinstance(console, Logger) else console
        # Written line by line, so a killed run keeps its log; open as long as the run lasts.
        self.file = open(path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115

    def write(self, text: str) -> None:
        """Raises :class:`UserError` where the file cannot be written (full disk)."""
        self.console.write(text)
        try:
            self.file.write(text)
        except OSError as error:
            raise write_error(self.path, error) from error

    def close(self, last_words: str = "") -> None:
        with contextlib.suppress(OSError), self.file:  # the error has been raised before
            self.file.write(last_words)

    def flush(self) -> None:
        self.console.flush()
        self.file.flush()

    def __getattr__(self, name: str):
        return getattr(self.console, name)


def rotate_file(path: Path) -> None:
    """Rename a file of an earlier run to ``<name>-<its date>``: nobody may take its result for the new run's."""
    if path.exists():
        stamp = time.strftime("%Y-%m-%d-%H-%M-%S", time.localtime(path.stat().st_mtime))
        aside, copies = path.with_name(f"{path.name}-{stamp}"), 1
        while aside.exists():
            copies += 1
            aside = path.with_name(f"{path.name}-{stamp}-{copies}")
        path.rename(aside)


def setup_logger(output: str | os.PathLike | None = None) -> None:
    """From here on, standard output goes to ``<output>/log.txt`` as well (or to ``output``, if that is a file name).

    An older log is renamed to ``log.txt-<date>``, so ``log.txt`` is always the newest run's.

    Raises:
        UserError: the folder cannot be written.
    """
    if not output:
        return
    path = Path(output)
    path = path if path.suffix in (".txt", ".log") else path / "log.txt"
    mkdir_if_missing(path.parent)
    try:
        rotate_file(path)
        sys.stdout = Logger(path)
    except OSError as error:
        raise UserError(f"cannot write to the output directory {path.parent}: {error.strerror}") from error


@contextmanager
def tee_stdout(output: str | os.PathLike) -> Iterator[None]:
    """:func:`setup_logger` for the body of a ``with``; a log that ends early says why."""
    before = sys.stdout
    setup_logger(output)
    logger, last_words = sys.stdout, ""
    try:
        yield
    except BaseException as error:
        last_words = traceback.format_exc()
        if isinstance(error, (UserError, KeyboardInterrupt)) and str(error):
            last_words = f"error: {error}\n" if isinstance(error, UserError) else f"{error}\n"
        raise
    finally:
        sys.stdout = before
        logger.close(last_words)
