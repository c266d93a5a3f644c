"""Downloads that resume and are checked. A file gets its final name only when it is complete."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from dassl.utils import UserError, file_digest, mkdir_if_missing

MAX_DOWNLOAD_BYTES = 8 << 30  # bytes, more than any file that the project downloads has; ends a download without an end


def download(url: str, path: str | os.PathLike, checksum: str, algorithm: str = "sha256") -> Path:
    """Download ``url`` to ``path``, in place of any file there, with a progress bar; return the path.

    ``checksum`` is the file's digest in hexadecimal by ``algorithm``, a name of hashlib.

    Raises:
        UserError: the download failed, and the next call resumes it; or the checksum differs, and the file is deleted.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    mkdir_if_missing(path.parent)
    try:
        _fetch(url, partial)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        raise UserError(f"cannot download {url} ({reason}). Run the command again to resume the download") from error
    if (digest := file_digest(partial, algorithm)) != checksum:
        partial.unlink()
        raise UserError(f"{url} arrived damaged: {algorithm} {digest}, expected {checksum}. Run the command again")
    os.replace(partial, path)
    return path


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
        raise OSError(f"the connection was cut after {partial.stat().st_size:,} of {size:,} bytes")
