"""The images that a command line names."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from dassl.utils import UserError, read_image

IMAGE_EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}  # looked for in folders
NUM_THREADS = min(8, os.cpu_count() or 1)  # that read images while others are computed
PREFETCH_IMAGES = 32  # images read before they are asked for


def find_images(arguments: Sequence[str]) -> list[str]:
    """Return paths of images: what :func:`find_paths` finds, and of folders the images in them and below, sorted.

    Raises:
        UserError: nothing is given, or one of the arguments leads to no image; it is named.
    """
    if not arguments:
        raise UserError("no images: give files, folders, glob patterns, or - for paths on standard input")
    return [path for entry in find_paths(arguments, "image") for path in _list_images(entry)]


def find_paths(arguments: Sequence[str], what: str) -> list[str]:
    """Return paths as they are given, those that glob patterns match, sorted, and for ``-`` those on standard input.

    Raises:
        UserError: one of the arguments leads to nothing; ``what`` is looked for.
    """
    found = []
    for argument in arguments:
        if argument == "-":
            found += [line.strip() for line in sys.stdin if line.strip()]
        elif matches := [argument] if os.path.exists(argument) else sorted(glob.glob(argument, recursive=True)):
            found += matches
        else:
            raise UserError(f"{what} not found: {argument}")
    if not found:
        raise UserError(f"no {what}s: there was no path on standard input")
    return found


def _list_images(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    found = sorted(str(file) for file in Path(path).rglob("*") if is_image(file))
    if not found:
        raise UserError(f"no image in the folder {path} (looked for {', '.join(sorted(IMAGE_EXTENSIONS))})")
    return found


def is_image(path: Path) -> bool:
    """Tell whether there is a file of that name that looks like an image; hidden ones do not."""
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".") and path.is_file()


def check_texts_are_not_images(words: Sequence[str], option: str, images: Sequence[str]) -> None:
    """Raise :class:`UserError` if one of the option's words is an image, so was meant to be one of the ``images``."""
    for word in words:
        if is_image(Path(word)) or (not images and os.path.exists(word)):
            why = f"{option} takes all words up to the next option"
            raise UserError(f'"{word}" is among the texts: {why}. Put the images before it, or -- between')


def read_each(paths: Sequence[str], read: Callable = read_image, what: str = "image") -> Iterator[tuple]:
    """Yield each path with what ``read`` makes of it, one at a time (see :func:`iterate_successes`)."""
    return iterate_successes(((path, _try_read(read, path)) for path in paths), len(paths), what)


def iterate_successes(results: Iterable[tuple], count: int, what: str = "image") -> Iterator[tuple]:
    """Yield those of the ``count`` pairs of path and result that are no errors, with a progress bar for several.

    Raises:
        UserError: there were errors: each is printed when its turn comes, and this one comes when all others are done.
    """
    from tqdm import tqdm

    failed = 0
    hidden = True if sys.stdout.isatty() or count == 1 else None  # there, the results themselves show the progress
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


def _try_read(read: Callable, path: str):
    try:
        return read(path)
    except UserError as error:
        return error


def prefetch(paths: Iterable[str], read: Callable) -> Iterator[tuple]:
    """Yield each path, in order, with what ``read`` makes of it, or its :class:`UserError`; threads read a few ahead.

    So any number of images takes the memory of a few.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        jobs = ((path, pool.submit(_try_read, read, path)) for path in paths)
        waiting = list(islice(jobs, PREFETCH_IMAGES))
        try:
            while waiting:
                path, future = waiting.pop(0)
                result = future.result()
                waiting += islice(jobs, 1)
                yield path, result
        finally:  # Ctrl-C, or nobody asks for more
            pool.shutdown(cancel_futures=True)
