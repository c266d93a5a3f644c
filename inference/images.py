"""The images that a command line names."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from dassl.utils import UserError

EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}  # looked for in folders
THREADS = min(8, os.cpu_count() or 1)  # that read images while others are computed
AHEAD = 32  # images read before they are asked for

T = TypeVar("T")


def find_images(arguments: Sequence[str]) -> list[str]:
    """Paths of images: files as they are; those in folders and below, and those that glob patterns match, sorted;
    for ``-`` the paths on standard input, one a line.

    Raises:
        UserError: nothing is given, or one of the arguments leads to no image; it is named.
    """
    if not arguments:
        raise UserError("no images: give files, folders, glob patterns, or - for paths on standard input")
    found = [path for argument in arguments for path in _images_of(argument)]
    if not found:
        raise UserError("no images: there was no path on standard input")
    return found


def _images_of(argument: str) -> Iterator[str]:
    if argument == "-":
        yield from (line.strip() for line in sys.stdin if line.strip())
    elif os.path.isdir(argument):
        found = sorted(str(path) for path in Path(argument).rglob("*") if is_image(path))
        if not found:
            raise UserError(f"no image in the folder {argument} (looked for {', '.join(sorted(EXTENSIONS))})")
        yield from found
    elif os.path.exists(argument):
        yield argument
    elif found := sorted(glob.glob(argument, recursive=True)):
        for path in found:
            yield from _images_of(path)  # a pattern may match folders, as the shell's may
    else:
        raise UserError(f"image not found: {argument}")


def is_image(path: Path) -> bool:
    """Whether there is a file of that name that looks like an image; hidden ones do not."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()


def check_words(words: Sequence[str], option: str, images: Sequence[str]) -> None:
    """Raise :class:`UserError` if one of the option's words is an image, so was meant to be one of the ``images``."""
    for word in words:
        if is_image(Path(word)) or (not images and os.path.exists(word)):
            raise UserError(
                f'"{word}" is among the texts: {option} takes all words up to the next option. Put the images before '
                "it, or -- between"
            )


def read_each(paths: Sequence[str], read: Callable[[str], T], what: str = "image") -> Iterator[tuple[str, T]]:
    """Each path with what ``read`` makes of it, one at a time (see :func:`succeeded`)."""
    return succeeded(((path, _attempt(read, path)) for path in paths), len(paths), what)


def succeeded(results: Iterable[tuple[str, T | UserError]], count: int, what: str = "image") -> Iterator[tuple[str, T]]:
    """The ``count`` results, with a progress bar for several, less those that are errors.

    Raises:
        UserError: there were errors: each is printed when its turn comes, and this one comes when all others are done.
    """
    from tqdm import tqdm

    failed = 0
    # Where the results themselves show the progress, there is no bar.
    hidden = True if sys.stdout.isatty() or count == 1 else None
    for path, result in tqdm(results, total=count, disable=hidden, leave=False, unit=what):
        if not isinstance(result, UserError):
            yield path, result
        elif count == 1:
            raise result
        else:
            tqdm.write(f"error: {result}", file=sys.stderr)
            failed += 1
    if failed:
        raise UserError(f"{failed:,} of {count:,} {what}s could not be read; they are named above")


def _attempt(read: Callable[[str], T], path: str) -> T | UserError:
    try:
        return read(path)
    except UserError as error:
        return error


def read_ahead(paths: Iterable[str], read: Callable[[str], T]) -> Iterator[tuple[str, T | UserError]]:
    """Each path, in order, with what ``read`` makes of it, or with its :class:`UserError`; read a few ahead, by
    threads. So any number of images takes the memory of a few."""
    from concurrent.futures import ThreadPoolExecutor

    paths = iter(paths)
    with ThreadPoolExecutor(THREADS) as pool:
        waiting = [(path, pool.submit(_attempt, read, path)) for path in islice(paths, AHEAD)]
        try:
            while waiting:
                path, future = waiting.pop(0)
                result = future.result()
                waiting += [(path, pool.submit(_attempt, read, path)) for path in islice(paths, 1)]
                yield path, result
        finally:  # Ctrl-C, or nobody asks for more
            pool.shutdown(cancel_futures=True)
