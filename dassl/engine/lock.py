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
from typing import TYPE_CHECKING

from dassl.utils import UserError, atomic_write, cannot_write, mkdir_if_missing
from dassl.utils.files import remove_temporaries

if TYPE_CHECKING:
    from filelock import FileLock

LOCK, OWNER = ".lock", ".running.json"  # the lock itself; who holds it, for the message
PATIENCE = 10  # seconds in which what a killed process has left behind comes to its end
POLL = 0.1  # seconds


class InUse(UserError):
    """Another process is in a folder: ``process`` tells which, where, since when."""

    process = ""


@contextmanager
def exclusive_lock(folder: str | os.PathLike) -> Iterator[None]:
    """For the body of a ``with``, no other process is in the same body for this folder. The lock ends with the process,
    however that ends.

    Raises:
        InUse: another one is; the message tells its process, host and since when.
        UserError: the folder cannot be written.
    """
    mkdir_if_missing(folder)
    owner = Path(folder, OWNER)
    lock = _locked(Path(folder, LOCK), owner)
    try:
        for place in (Path(folder), *Path(folder).glob("*/")):
            if place == Path(folder) or not (place / LOCK).exists():  # others may be in folders of their own
                remove_temporaries(place)
        with atomic_write(owner) as file:
            json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}, file)
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        lock.release()


def _locked(path: Path, owner: Path) -> FileLock:
    """The lock, acquired. That of a process which was killed may be held a moment longer by its own child processes."""
    from filelock import FileLock, Timeout

    lock, deadline = FileLock(path), time.monotonic() + PATIENCE
    while True:
        try:
            lock.acquire(timeout=POLL)
            return lock
        except Timeout as error:
            process, lives = _told_by(owner)
            if lives or time.monotonic() > deadline:
                busy = InUse(f"{path.parent} is in use by {process}. Wait for it, stop it, or take another folder")
                busy.process = process
                raise busy from error
        except OSError as error:
            raise cannot_write(path, error) from error


def _told_by(owner: Path) -> tuple[str, bool]:
    """Who holds a lock, and whether it is known to live."""
    try:
        told = json.loads(owner.read_text(encoding="utf-8"))
        process = f"process {told['pid']} on {told['host']}, since {told['since']}"
        return process, told["host"] != socket.gethostname() or lives(told["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process", False  # it is just beginning, or ending


def lives(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    if os.name == "nt":  # os.kill would not only look; and locks there end with their process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
