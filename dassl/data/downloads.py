"""Downloads that resume and are checked. A file gets its final name only when it is complete."""

from __future__ import annotations

import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from dassl.utils import UserError, file_digest, mkdir_if_missing
from dassl.utils.files import replace_file

MAX_DOWNLOAD_BYTES = 8 << 30  # bytes, more than any file that the project downloads has; ends a download without an end
RETRY_PAUSES = (2, 10, 30)  # seconds before the second, third and fourth attempt: most cuts of a line are shorter
BUSY_STATUSES = (408, 429, 500, 502, 503, 504)  # of HTTP: the same request may succeed later
# Errors of a connection that was cut, or refused by a busy server.
CONNECTION_ERRORS = (ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)


def download(url: str, path: str | os.PathLike, checksum: str, algorithm: str = "sha256") -> Path:
    """Download ``url`` to ``path``, in place of any file there, with a progress bar; return the path.

    ``checksum`` is the file's digest in hexadecimal by ``algorithm``, a name of hashlib.

    A download that is cut goes on where it was cut (``retry``).

    Raises:
        UserError: all attempts failed, and the next call resumes the download; or the checksum differs, and the file is
            deleted.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    mkdir_if_missing(path.parent)
    try:
        retry(lambda: _fetch(url, partial), url, lambda: partial.stat().st_size if partial.exists() else 0)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        hint = f"Run the command again to resume the download, or fetch the file in a browser and put it at {path}"
        raise UserError(f"cannot download {url} ({_unwrap(error)}). {hint}") from error
    if (digest := file_digest(partial, algorithm)) != checksum:
        partial.unlink()
        raise UserError(f"{url} arrived damaged: {algorithm} {digest}, expected {checksum}. Run the command again")
    replace_file(partial, path)
    return path


def retry(fetch: Callable[[], object], name: str, get_size: Callable[[], int] = lambda: 0) -> None:
    """Call ``fetch``; if the connection is cut, print a note and call it again, after each of RETRY_PAUSES.

    An attempt that makes ``get_size``, the bytes that have arrived, larger does not count. Errors of the last call, and
    those that a later call would meet again, such as "not found", are raised.
    """
    pauses = iter(RETRY_PAUSES)
    while True:
        size = get_size()
        try:
            fetch()
            return
        except (OSError, http.client.HTTPException) as error:
            pauses = iter(RETRY_PAUSES) if get_size() > size else pauses
            pause = next(pauses, None) if _may_pass(error) else None
            if pause is None:
                raise
            print(f"Note: the download of {name} broke off ({_unwrap(error)}); next attempt in {pause} s", flush=True)
        time.sleep(pause)


def _may_pass(error: Exception) -> bool:
    """Return whether the same request may succeed later: the connection was cut, or the server is busy."""
    reason = _unwrap(error)
    is_cut = isinstance(reason, CONNECTION_ERRORS) and not isinstance(reason, ssl.SSLCertVerificationError)
    return is_cut or getattr(error, "code", None) in BUSY_STATUSES  # of an HTTPError


def _unwrap(error: Exception) -> object:
    """Return the error that urllib has wrapped in a URLError; other errors as they are."""
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        return error.reason
    return error


def _fetch(url: str, partial: Path) -> None:
    """Append the missing bytes of ``url`` to ``partial``, up to MAX_DOWNLOAD_BYTES in all; OSError if it fails."""
    from tqdm import tqdm

    offset = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416 and offset:  # Range Not Satisfiable: the file is complete
            return
        raise
    with response:
        offset = offset if response.status == 206 else 0  # without Partial Content, the server sends the whole file
        size = int(response.headers.get("Content-Length") or 0) + offset
        with (
            open(partial, "ab" if offset else "wb") as file,
            tqdm(total=size, initial=offset, unit="B", unit_scale=True, desc=partial.stem) as bar,
        ):
            while file.tell() <= MAX_DOWNLOAD_BYTES and (chunk := response.read(1 << 20)):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if partial.stat().st_size < size:
        raise ConnectionError(f"the connection was cut after {partial.stat().st_size:,} of {size:,} bytes")
