"""Reading and writing files. What is written appears under its final name only when it is whole."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UserError


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside ``path`` and rename it to ``path`` once it is written and synced.

    Raises:
        UserError: the file cannot be written (no permission, full disk); ``path`` is as it was before.
    """
    path = Path(path)
    mkdir_if_missing(path.parent)
    temporary = None
    try:
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        with tempfile.NamedTemporaryFile(mode, dir=path.parent, prefix=f".{path.name}.", delete=False, **text) as file:
            temporary = file.name
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
    found = os.path.isfile(fpath)
    if not found:
        print(f'No file found at "{fpath}"')
    return found


def read_json(fpath: str | os.PathLike) -> Any:
    try:
        return json.loads(Path(fpath).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {fpath}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{fpath} is not valid JSON: {error}") from error


def write_json(obj: Any, fpath: str | os.PathLike) -> None:
    with atomic_write(fpath) as file:
        json.dump(obj, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_image(path: str | os.PathLike):
    """The picture as an RGB ``PIL.Image``.

    Raises:
        UserError: the file is absent, or is no picture that PIL can decode; it is named.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"image not found: {path}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read {path} as an image: {error}") from error
