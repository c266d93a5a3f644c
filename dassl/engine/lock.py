"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dassl.utils import UserError, atomic_write, mkdir_if_missing, write_error
from dassl.utils.files import remove_temporary_files

LOCK_FILE, OWNER_FILE = ".lock", ".running.json"  # the lock itself; who holds it, for the message
LOCK_TIMEOUT = 6  # seconds: a loader's workers hold the lock of a killed process until they miss it, within 5


class FolderLockedError(UserError):
    """Another process is in a folder."""


@contextmanager
def exclusive_lock(folder: str | os.PathLike, patience: float | None = None) -> Iterator[None]:
    """For the body of a ``with``, no other process is in the same body for this folder. The lock ends with the process,
    however that ends.

    Args:
        patience: seconds to wait for it (PATIENCE).

    Raises:
        InUse: another one is; the message tells its process, host and since when.
        UserError: the folder cannot be written.
    """
    mkdir_if_missing(folder)
    owner = Path(folder, OWNER_FILE)
    lock = _acquire_lock(Path(folder, LOCK_FILE), owner, LOCK_TIMEOUT if patience is None else patience)
    try:
        remove_temporary_files(folder)
        for place in Path(folder).glob("*/"):
            if not (place / LOCK_FILE).exists():  # others may be in folders of their own
                remove_temporary_files(place)
        with atomic_write(owner) as file:
            json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}, file)
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        lock.release()


def _acquire_lock(path: Path, owner: Path, patience: float):
    """Return the lock, acquired."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        message = f"{path.parent} is in use by {_describe_owner(owner)}. Wait for it, stop it, or take another folder"
        raise FolderLockedError(message) from error
    except OSError as error:
        raise write_error(path, error) from error
    return lock


def _describe_owner(owner: Path) -> str:
    """Return which process holds a lock, since when."""
    try:
        told = json.loads(owner.read_text(encoding="utf-8"))
        return f"process {told['pid']} on {told['host']}, since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # it is just beginning, or ending
