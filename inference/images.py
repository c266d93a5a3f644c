"""Finding and reading the images that a command line names."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from dassl.utils import Decoding, UserError, check_at_least, read_image
from dassl.utils.images import (
    EXAMPLE_EXTENSIONS,
    ORIENTATIONS,
    SYSTEM_FILES,
    count_kinds,
    find_extension,
    is_image_name,
    is_system_name,
)

ARCHIVE_EXTENSIONS = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
NUM_THREADS = min(8, os.cpu_count() or 1)  # reading threads; eight keep a model on a GPU busy
PREFETCH_FILES = 32  # images read ahead: one batch of the default size


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the images, ``--json`` and the options on the decoding of images to ``parser``."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="file, folder, glob pattern; -: paths on stdin")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each image, for programs")
    text = "exif: images are turned upright by their EXIF tag (the default); stored: they are not"
    parser.add_argument("--orientation", choices=ORIENTATIONS, help=text)
    text = "value that is white in images of more than 8 bits a channel (0: the highest of the file's type)"
    parser.add_argument("--white-level", type=int, metavar="N", help=text)


def parse_decoding(args: argparse.Namespace) -> Decoding:
    """Return the decoding that the options of ``add_image_arguments`` name; UserError for a negative level."""
    white_level = args.white_level or 0
    check_at_least(white_level, 0, "--white-level")
    return Decoding(white_level, args.orientation or "exif")


def print_deep_images_note(paths: Sequence[str], decoding: Decoding, option: str = "--white-level") -> None:
    """Print the note of ``dassl.data.decoding.describe_deep_images``, if there is one, to standard error."""
    from dassl.data.decoding import describe_deep_images

    if note := describe_deep_images(paths, decoding, option):
        print(note, file=sys.stderr)


def find_images(arguments: Sequence[str]) -> list[str]:
    """Return the image paths that ``arguments`` name; a folder stands for all images in it and below it, sorted.

    Raises:
        UserError: there are no arguments, a folder has no image, or as ``find_paths``, which reads the arguments.
    """
    if not arguments:
        raise UserError("no images: name files, folders, glob patterns, or - for paths on standard input")
    return [path for entry in find_paths(arguments, "image") for path in _list_images(entry)]


def find_paths(arguments: Sequence[str], kind: str) -> list[str]:
    """Return the paths that ``arguments`` (files, folders, glob patterns, ``-``) name, in the order of the arguments.

    A glob pattern stands for its matches, sorted; ``-`` for the paths on standard input, one a line, which need not
    exist. Files of the system are left out, unless there is nothing else. ``kind`` is the noun for a path in messages,
    such as "image".

    Raises:
        UserError: an argument other than ``-`` matches nothing or is an address, there is no path at all, or standard
            input is no text.
    """
    paths = []
    for argument in arguments:
        if argument == "-":
            try:
                paths += [line.strip() for line in sys.stdin if line.strip()]
            except UnicodeDecodeError as error:
                hint = "set the environment variable PYTHONUTF8=1 if it is UTF-8"
                raise UserError(f"standard input is no text in {error.encoding}; {hint}") from error
        elif matches := [argument] if os.path.exists(argument) else sorted(glob.glob(argument, recursive=True)):
            paths += matches
        elif "://" in argument or argument.lower().startswith("www."):
            raise UserError(f"{argument} is an address, not a file: download it first, then name the {kind}'s file")
        else:
            raise UserError(f"{kind} not found: {argument}")
    if not paths:
        raise UserError(f"no {kind}s: there was no path on standard input")
    return [path for path in paths if not is_system_file(path)] or paths


def is_system_file(path: str) -> bool:
    """Return whether ``path`` ends in the name of a file or folder of Windows or macOS, such as Thumbs.db."""
    return Path(path).name.lower() in SYSTEM_FILES


def _list_images(path: str) -> list[str]:
    """Return the images in and below the folder ``path``, sorted; ``[path]`` for a file.

    A file without the extension of an image is one if its content is. A note on standard error counts the folder's
    other files, but those that are hidden or the system's, or in such a folder. Raises ``UserError`` for a folder
    without an image, and for an archive.
    """
    if not os.path.isdir(path):
        if path.lower().endswith(ARCHIVE_EXTENSIONS):
            raise UserError(f"{path} is an archive: unpack it, then name the folder")
        return [path]
    entries = [file for file in Path(path).rglob("*") if not any(map(is_system_name, file.relative_to(path).parts))]
    names = [str(file) for file in entries if file.is_file()]
    images = sorted(name for name in names if is_image_name(os.path.basename(name)) or find_extension(name))
    others = count_kinds({*names} - {*images})
    if not images:
        content = f"it has {others}" if others else "it is empty"
        raise UserError(f"no image in the folder {path}: {content}; images end in {EXAMPLE_EXTENSIONS}")
    if others:
        print(f"Note: passed over in {path}: {others}", file=sys.stderr)
    return images


def is_image(path: Path) -> bool:
    """Return whether ``path`` is an existing file with the name of an image (``is_image_name``)."""
    return is_image_name(path.name) and path.is_file()


def check_texts_are_not_images(texts: Sequence[str], option: str, images: Sequence[str]) -> None:
    """Raise ``UserError`` if one of ``texts``, the values of ``option``, is the path of an image file.

    If ``images``, the image arguments of the command line, are empty, any existing path among the texts is an error.
    """
    for text in texts:
        if is_image(Path(text)) or (not images and os.path.exists(text)):
            reason = f"{option} takes all words up to the next option"
            raise UserError(f'"{text}" is among the texts: {reason}. Put the images before it, or -- between')


def read_images(paths: Sequence[str], args: argparse.Namespace) -> Iterator[tuple]:
    """Yield (path, image in RGB) of each path, decoded as ``args`` says; errors as in ``iterate_successes``."""
    decoding = parse_decoding(args)
    print_deep_images_note(paths, decoding)
    return read_each(paths, partial(read_image, decoding=decoding), "image")


def read_each(paths: Sequence[str], read: Callable, kind: str) -> Iterator[tuple]:
    """Read the paths one by one; yield (path, ``read(path)``), errors and ``kind`` as in ``iterate_successes``."""
    return iterate_successes(((path, _try_read(read, path)) for path in paths), len(paths), kind)


def iterate_successes(results: Iterable[tuple], count: int, kind: str = "image") -> Iterator[tuple]:
    """Yield the (path, result) pairs whose result is not a ``UserError``, with a progress bar for several.

    Errors among several pairs are printed to standard error where they occur. ``count`` is the number of pairs,
    ``kind`` the noun for a path in messages.

    Raises:
        UserError: the error of the only pair; or, after the last of several pairs, the number of errors.
    """
    from tqdm import tqdm

    num_errors = 0
    is_hidden = True if sys.stdout.isatty() or count == 1 else None  # on a terminal, the results show the progress
    for path, result in tqdm(results, total=count, disable=is_hidden, leave=False, unit=kind):
        if not isinstance(result, UserError):
            yield path, result
        elif count == 1:
            raise result
        else:
            tqdm.write(f"error: {result}", file=sys.stderr)
            num_errors += 1
    if num_errors:
        raise UserError(f"{num_errors:,} of {count:,} {kind}s could not be read; they are named above")


def _try_read(read: Callable, path: str):
    """Return ``read(path)``, or the ``UserError`` that it raises."""
    try:
        return read(path)
    except UserError as error:
        return error


def prefetch(paths: Iterable[str], read: Callable) -> Iterator[tuple]:
    """Yield (path, result) in order; threads read up to ``PREFETCH_FILES`` paths ahead.

    A result is ``read(path)``, or the ``UserError`` that it raises. Memory does not grow with the number of paths.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        jobs = ((path, pool.submit(_try_read, read, path)) for path in paths)
        waiting = list(islice(jobs, PREFETCH_FILES))
        try:
            while waiting:
                path, future = waiting.pop(0)
                result = future.result()
                waiting += islice(jobs, 1)
                yield path, result
        finally:  # after Ctrl-C, or when the caller stops iterating
            pool.shutdown(cancel_futures=True)
