"""Paths that work on Windows, too."""

import os


def relpath(path: str | os.PathLike, start: str | os.PathLike = os.curdir) -> str:
    """Return ``path`` relative to the folder ``start``; the absolute path if they are on different drives."""
    try:
        return os.path.relpath(path, start)
    except ValueError:  # only Windows has drives
        return os.path.abspath(path)
