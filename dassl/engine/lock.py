"""A lock that admits one process at a time to a folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.utils import UserError, atomic_write, mkdir_if_missing, write_error
from dassl.utils.files import remove_temporary_files

if TYPE_CHECKING:
    from filelock import FileLock

LOCK_FILE, OWNER_FILE = ".lock", ".running.json"  # the lock itself; a description of its owner, for the message
LOCK_TIMEOUT = 6  # seconds: the loader workers of a killed process hold its lock for up to 5, until they notice


class FolderLockedError(UserError):
    """Another process holds the lock of a folder."""


@contextmanager
def exclusive_lock(folder: str | os.PathLike, timeout: float | None = None) -> Iterator[None]:
    """Hold the lock of ``folder`` for the body of a ``with``, and remove temporary files that killed processes left.

    The folder is created if it is missing. The lock ends with the process, also if the process is killed. ``timeout``:
    seconds to wait for the lock (None: LOCK_TIMEOUT).

    Raises:
        FolderLockedError: another process holds the lock; the message gives its process id, host and start time.
        UserError: the folder cannot be written.
    """
    mkdir_if_missing(folder)
    owner_path = Path(folder, OWNER_FILE)
    lock = _acquire_lock(Path(folder, LOCK_FILE), owner_path, LOCK_TIMEOUT if timeout is None else timeout)
    try:
        remove_temporary_files(folder)
        for subfolder in Path(folder).glob("*/"):
            if not (subfolder / LOCK_FILE).exists():  # a folder with its own lock may be in use
                remove_temporary_files(subfolder)
        with atomic_write(owner_path) as file:
            json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}, file)
        yield
    finally:
        with contextlib.suppress(OSError):
            owner_path.unlink()
        lock.release()


def _acquire_lock(path: Path, owner_path: Path, timeout: float) -> FileLock:
    """Acquire the lock file at ``path`` within ``timeout`` seconds and return it; raise as ``exclusive_lock`` does.

    The message describes the process that holds the lock, from the file ``owner_path``.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except Timeout as error:
        owner = _describe_owner(owner_path)
        message = f"{path.parent} is in use by {owner}. Wait for it, stop it, or take another folder"
        raise FolderLockedError(message) from error
    except OSError as error:
        raise write_error(path, error) from error
    return lock


def _describe_owner(owner_path: Path) -> str:
    """Return "process PID on HOST, since TIME" from the file ``owner_path``; if unreadable, "another process"."""
    try:
        owner = json.loads(owner_path.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written the file yet, or has removed it
        return "another process"
