"""Reading and writing files. A written file gets its final name only when it is complete."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UserError, is_in_use, write_error

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
    """Raise ``UserError`` if one of the files exists and cannot be renamed: on Windows, a program has it open.

    Call it before the first of several files is written or renamed.
    """
    for path in filter(os.path.exists, paths):
        try:
            os.rename(path, path)
        except OSError as error:
            raise write_error(path, error) from error


def remove_temporary_files(folder: str | os.PathLike, older_than: float = 0) -> None:
    """Remove the temporary files of ``atomic_write`` that killed processes left in a folder, not below it.

    Files written to in the last ``older_than`` seconds stay. With 0, all go: then no process may be writing there.
    """
    for path in Path(folder).glob(f".*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):
            if not older_than or time.time() - path.stat().st_mtime > older_than:
                path.unlink()


def mkdir_if_missing(dirname: str | os.PathLike) -> None:
    """Create the folder and its parents; raise ``UserError`` where that is not possible."""
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


def join_below(folder: str | os.PathLike, name: str) -> Path:
    """Return the path of the file ``name`` in ``folder``; UserError if it leads out: absolute, by .., or as a link."""
    path, base = Path(folder, name), Path(folder).resolve()
    if Path(name).anchor or ".." in Path(name).parts or (path.is_symlink() and base not in path.resolve().parents):
        raise UserError(f"{name} is not in {folder}")
    return path


def escape_formula(text: str) -> str:
    """Return ``text`` for a cell of a CSV file, after a ' where spreadsheets would take it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


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


def read_text(path: str | os.PathLike) -> str:
    """Return the text of a file in UTF-8, without its byte order mark; line ends stay as they are.

    Raises:
        UserError: the file cannot be read, is not in UTF-8, or has null characters; the message has the line, and the
            encoding if it is one that Excel and Chinese Windows write.
    """
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        position = error.start
    else:
        if (position := content.find(b"\0")) < 0:
            return text
    line = content.count(b"\n", 0, position) + 1
    raise UserError(f"{path}, line {line}: it is no text in UTF-8{_describe_content(content)}")


def _describe_content(content: bytes) -> str:
    """Return what a file that is not in UTF-8 seems to be, and what to do, as the end of a message."""
    if content.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0")):  # zip, which .xlsx is, and .xls
        return ', but an Excel workbook or an archive: export it as "CSV UTF-8"'
    has_mark = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    has_nulls = b"\0" in content.strip(b"\0")  # between letters; after a crash, a file may end in some
    encoding = "UTF-16" if has_mark or has_nulls else ""
    with contextlib.suppress(UnicodeDecodeError):
        content.decode("gb18030")
        encoding = encoding or "GBK"
    return f". It seems to be in {encoding}: save it as UTF-8" if encoding else ": save it as UTF-8"


def read_json(fpath: str | os.PathLike) -> Any:
    """Return the content of a JSON file; raise ``UserError`` where it cannot be read or is not valid."""
    text = read_text(fpath)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{fpath} is not valid JSON: {error}") from error


def write_json(obj: Any, fpath: str | os.PathLike) -> None:
    """Write ``obj`` to a JSON file, and make missing folders.

    Raises:
        UserError: the file cannot be written, or a number is NaN or infinite, which JSON does not have.
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{fpath} is not written: a number in it is NaN or infinite ({error})") from error
    with atomic_write(fpath) as file:
        file.write(f"{text}\n")
