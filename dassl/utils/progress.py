"""The progress of long work: a bar on a terminal; without one, a line in the log now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 30  # seconds between two lines, and before the first: shorter work has none
LINE_FORMAT = "{desc}: {n:,} of {total:,}, {remaining} left"  # studies/progress.py reads it


class _LineStream:
    """A stream for tqdm that prints what would be a new state of the bar as a line of standard output."""

    def write(self, text: str) -> None:
        """Print ``text`` without the characters that overwrite and erase a bar; nothing if no others are left."""
        if line := text.strip("\r\n "):
            print(line, flush=True)

    def flush(self) -> None:
        """Do nothing: each line is flushed."""


def progress_bar(iterable: Iterable | None = None, *, desc: str, unit: str, total: int | None = None) -> tqdm:
    """Return a tqdm bar if standard error is a terminal; else one that prints a line every LINE_SECONDS.

    A line says how much is done and how long the rest takes. It goes to standard output, of which log.txt is a copy.
    ``desc`` names the work, such as "encoding train images"; ``unit`` is that of a bar's rate, such as "batch".
    """
    options: dict[str, Any] = {"leave": False, "desc": desc, "unit": unit, "total": total}
    if not sys.stderr.isatty():
        options |= {"file": _LineStream(), "bar_format": LINE_FORMAT, "miniters": 1}
        options |= {"mininterval": LINE_SECONDS, "delay": LINE_SECONDS}
    return tqdm(iterable, **options)
