"""The images that a command line names."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dassl.utils import UserError

EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}  # looked for in folders


def find_images(arguments: Sequence[str]) -> list[str]:
    """Paths of images: files as they are; those in folders and below, and those that glob patterns match, sorted;
    for ``-`` the paths on standard input, one a line.

    Raises:
        UserError: nothing is given, or one of the arguments leads to no image; it is named.
    """
    if not arguments:
        raise UserError("no images: give files, folders, glob patterns, or - for paths on standard input")
    return [path for argument in arguments for path in _images_of(argument)]


def _images_of(argument: str) -> Iterator[str]:
    if argument == "-":
        yield from (line.strip() for line in sys.stdin if line.strip())
    elif os.path.isdir(argument):
        found = sorted(str(path) for path in Path(argument).rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not found:
            raise UserError(f"no image in the folder {argument} (looked for {', '.join(sorted(EXTENSIONS))})")
        yield from found
    elif os.path.exists(argument):
        yield argument
    elif found := sorted(glob.glob(argument, recursive=True)):
        yield from found
    else:
        raise UserError(f"image not found: {argument}")
