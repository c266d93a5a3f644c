"""Reading and writing files. What is written appears under its final name only when it is whole."""

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

from .errors import UnreadableImageError, UserError, error_reason, write_error

TEMPORARY_SUFFIX = ".tmp"  # how the names of files end that are being written; they begin with a dot


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside ``path`` and rename it to ``path`` once it is written and synced.

    Raises:
        UserError: the file cannot be written (no permission, full disk, quota); ``path`` is as it was before.
    """
    path = Path(path)
    mkdir_if_missing(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__  # torch.save hides it behind its own
        if not isinstance(reason, OSError):
            raise
        raise write_error(path, reason) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary_files(folder: str | os.PathLike, older_than: float = 0) -> None:
    """Remove what writers that were killed have left in a folder. Nobody may be writing to it now, unless what was
    written to in as many seconds is left alone."""
    for path in Path(folder).glob(f".*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):
            if not older_than or time.time() - path.stat().st_mtime > older_than:
                path.unlink()


def mkdir_if_missing(dirname: str | os.PathLike) -> None:
    """Make the folder and its parents; :class:`UserError` where that is not possible."""
    try:
        os.makedirs(dirname or ".", exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {dirname}: {error.strerror}") from error


def listdir_nohidden(path: str | os.PathLike, sort: bool = False) -> list[str]:
    """Names in a folder, without those that begin with a dot."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def check_isfile(fpath: str | os.PathLike) -> bool:
    """Whether the file is there; says so if it is not."""
    if not (found := os.path.isfile(fpath)):
        print(f'No file found at "{fpath}"')
    return found


def file_digest(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """Return the checksum of a file in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.new(algorithm)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_utf8(text: str) -> bool:
    """Whether a file in UTF-8 can hold a text: not, where it came from other bytes, such as a name in Latin-1."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def read_json(fpath: str | os.PathLike) -> Any:
    try:
        return json.loads(Path(fpath).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {fpath}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{fpath} is not valid JSON: {error}") from error


def write_json(obj: Any, fpath: str | os.PathLike) -> None:
    with atomic_write(fpath) as file:
        json.dump(obj, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_image(path: str | os.PathLike):
    """The picture as an RGB ``PIL.Image``.

    Raises:
        BadImage: the file is absent, or cannot be read, or is no picture that PIL can decode; it is named.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            # PIL would warn, each time, that such transparency is lost, as it is to be.
            if isinstance(image.info.get("transparency"), bytes):
                del image.info["transparency"]
            return image.convert("RGB")
    except Exception as error:  # a damaged file makes PIL's decoders raise almost anything
        raise UnreadableImageError.of(path, _decode_error_reason(error)) from error


def _decode_error_reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # PIL's message names the file
        return "it is in no format that PIL knows, or damaged"
    if isinstance(error, Image.DecompressionBombError):
        pixels, most = int(re.search(r"\d+", str(error))[0]), 2 * Image.MAX_IMAGE_PIXELS
        return f"it has {pixels:,} pixels, and PIL decodes {most:,} at most, lest it fill the memory; scale it down"
    return getattr(error, "strerror", None) or error_reason(error)
