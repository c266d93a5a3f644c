"""Reading and writing files. A written file gets its final name only when it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UnreadableImageError, UserError, error_reason, is_in_use, write_error

# The end of the names of files that are being written. The names begin with a dot, so that listings leave them out.
TEMPORARY_SUFFIX = ".tmp"
# Seconds between attempts to give a file its name: on Windows, a virus scanner holds a new file open for a moment.
REPLACE_PAUSES = (0.1, 0.3, 0.6)


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside ``path``; rename it to ``path`` after the body of the ``with``, once it is synced.

    If the body raises, ``path`` is unchanged. Missing folders are made. ``mode`` is "w" (UTF-8) or "wb".

    Raises:
        UserError: the file cannot be written (no permission, full disk, quota).
    """
    path = Path(path)
    mkdir_if_missing(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
        with open(temporary, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace_file(temporary, path)
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__  # torch.save raises a RuntimeError for it
        if not isinstance(reason, OSError):
            raise
        raise write_error(path, reason) from error
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``, in place of any file there; for a second, wait for one that is in use."""
    for pause in REPLACE_PAUSES:
        try:
            os.replace(source, target)
            return
        except OSError as error:
            if not is_in_use(error):
                raise
        time.sleep(pause)
    os.replace(source, target)


def check_replaceable(*paths: str | os.PathLike) -> None:
    """Raise :class:`UserError` if one of the files exists and cannot be renamed: on Windows, a program has it open.

    Call it before the first of several files is written or renamed.
    """
    for path in filter(os.path.exists, paths):
        try:
            os.rename(path, path)
        except OSError as error:
            raise write_error(path, error) from error


def remove_temporary_files(folder: str | os.PathLike, older_than: float = 0) -> None:
    """Remove the temporary files of :func:`atomic_write` that killed processes left in a folder, not below it.

    Files written to in the last ``older_than`` seconds stay. With 0, all go: then no process may be writing there.
    """
    for path in Path(folder).glob(f".*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):
            if not older_than or time.time() - path.stat().st_mtime > older_than:
                path.unlink()


def mkdir_if_missing(dirname: str | os.PathLike) -> None:
    """Create the folder and its parents; raise :class:`UserError` where that is not possible."""
    try:
        os.makedirs(dirname or ".", exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {dirname}: {error.strerror}") from error


def listdir_nohidden(path: str | os.PathLike, sort: bool = False) -> list[str]:
    """Return the names in a folder that do not begin with a dot; without ``sort``, in any order."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def check_isfile(fpath: str | os.PathLike) -> bool:
    """Return whether the file exists; print a line if it does not."""
    if not (is_file := os.path.isfile(fpath)):
        print(f'No file found at "{fpath}"')
    return is_file


def file_digest(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """Return the checksum of a file in hexadecimal; ``algorithm`` is a name of hashlib."""
    with open(path, "rb") as file:
        digest = hashlib.new(algorithm)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_utf8(text: str) -> bool:
    """Return whether UTF-8 can encode ``text``.

    It cannot encode lone surrogates, by which Python stands for bytes that are not UTF-8, as in a file name in Latin-1.
    """
    return not any("\ud800" <= character <= "\udfff" for character in text)


def read_json(fpath: str | os.PathLike) -> Any:
    """Return the content of a JSON file; raise :class:`UserError` where it cannot be read or is not valid."""
    try:
        return json.loads(Path(fpath).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {fpath}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{fpath} is not valid JSON: {error}") from error


def write_json(obj: Any, fpath: str | os.PathLike) -> None:
    """Write ``obj`` to a JSON file, and make missing folders; :class:`UserError` if the file cannot be written."""
    with atomic_write(fpath) as file:
        json.dump(obj, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_image(path: str | os.PathLike):
    """Return the image in a file as an RGB ``PIL.Image``.

    Raises:
        UnreadableImageError: the file is absent or unreadable, or PIL cannot decode it; the message names the file.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            # Conversion to RGB drops this transparency on purpose; with the entry, PIL would warn of it for each image.
            if isinstance(image.info.get("transparency"), bytes):
                del image.info["transparency"]
            return image.convert("RGB")
    except Exception as error:  # a damaged file makes PIL's decoders raise almost any class
        raise UnreadableImageError.for_file(path, _decode_error_reason(error)) from error


def _decode_error_reason(error: Exception) -> str:
    """Return why PIL cannot read an image, as the end of a message that names the file."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # PIL's message names the file
        return "it is in no format that PIL knows, or damaged"
    if isinstance(error, Image.DecompressionBombError):
        assert Image.MAX_IMAGE_PIXELS is not None  # without a limit, PIL does not raise this error
        pixels, limit = int(re.findall(r"\d+", str(error))[0]), 2 * Image.MAX_IMAGE_PIXELS
        return f"it has {pixels:,} pixels; to protect the memory, PIL decodes {limit:,} at most; scale it down"
    return getattr(error, "strerror", None) or error_reason(error)
