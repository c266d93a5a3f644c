"""Downloads that resume, are checked, and never leave a half file under the final name."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from dassl.utils import UserError, file_digest, mkdir_if_missing

MAX_BYTES = 8 << 30  # bytes; no file that is fetched here has as many


def download(url: str, path: str | os.PathLike, checksum: str, algorithm: str = "sha256") -> Path:
    """Fetch ``url`` to ``path``, showing progress; a download that was cut off goes on where it stopped.

    Raises:
        UserError: the address cannot be reached, or what came has another checksum, or no end (it is deleted).
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    mkdir_if_missing(path.parent)
    try:
        _fetch(url, part)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        raise UserError(f"cannot download {url} ({reason}). Run it again to go on, or fetch it elsewhere") from error
    if (found := file_digest(part, algorithm)) != checksum:
        part.unlink()
        raise UserError(f"{url} arrived damaged: {algorithm} {found}, expected {checksum}. Run the command again")
    os.replace(part, path)
    return path


def _fetch(url: str, part: Path) -> None:
    """Append to ``part`` what it lacks of ``url``, up to ``MAX_BYTES`` bytes."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to fetch
            return
        raise
    with response:
        have = have if response.status == 206 else 0  # else it sends the whole file
        size = int(response.headers.get("Content-Length") or 0) + have
        with (
            open(part, "ab" if have else "wb") as file,
            tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            while file.tell() <= MAX_BYTES and (chunk := response.read(1 << 20)):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if part.stat().st_size < size:
        raise OSError(f"the connection was cut after {part.stat().st_size:,} of {size:,} bytes")
