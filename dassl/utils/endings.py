"""How the several processes of a run begin and end together: each error is told once, and a lost process named.

A process whose peer has gone finds out in what they exchange, or by SIGTERM, which torchrun sends to all once one has
gone. It then looks for the reason: words that the other one left, or a process that is no more.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from .distributed import (
    PeerLost,
    ToldElsewhere,
    is_first,
    join,
    launcher,
    leave,
    place_of,
    rank,
    store,
    told_by,
    was_started_with_others,
    world_size,
)
from .errors import UserError
from .locks import lives

GRACE = 10.0  # seconds in which processes that end for the same reason learn of each other
STUCK = 5.0  # seconds after SIGTERM in which Python is to come to its handler; torchrun kills after 30
POLL = 0.05  # seconds

_ending = threading.Event()  # this process has learned that others are gone
_more: list[Callable[[], str]] = []  # what a message about a lost process says beside its name; the last one


class Lost(UserError):
    """Says which process is gone."""


def stopped(where: str, goes_on: str, script: str, argv: list[str]) -> KeyboardInterrupt:
    """Ctrl-C that says where it came and which command goes on; :func:`dassl.utils.command_line` prints it."""
    return KeyboardInterrupt(f"stopped {going_on(where, goes_on, script, argv)}")


def going_on(where: str, goes_on: str, script: str, argv: list[str]) -> str:
    """The rest of a message that says where a program came to its end, and which command goes on."""
    again = shlex.join([*launcher(), os.path.relpath(script), *argv])
    return f"{where}; this goes on {goes_on}:\n  {again}"


@contextmanager
def one_of_several() -> Iterator[None]:
    """For the body of a ``with``, the processes that torchrun started are one run. A process that is not to tell its
    error ends in ``SystemExit``. Without torchrun, nothing happens."""
    if not was_started_with_others():
        yield
        return
    _ending.clear()
    join()  # SIGTERM ends a process that is waiting for others here
    before, whole = signal.signal(signal.SIGTERM, _terminated), False
    try:
        with nullcontext() if is_first() else _silent(), _watched():
            try:
                with explaining():
                    yield
            finally:
                _end()
        whole = True
    except UserError as error:
        if not _is_mine_to_tell(error):
            raise SystemExit(2) from None
        if is_first() or isinstance(error, Lost):
            raise
        raise UserError(told_by(rank(), error)) from error
    except KeyboardInterrupt:
        if is_first():
            raise
        raise SystemExit(130) from None
    except Exception as error:
        _report(told_by(rank(), error))
        raise
    finally:
        leave(whole)
        signal.signal(signal.SIGTERM, before if whole else signal.SIG_IGN)  # torchrun's comes yet


@contextmanager
def explaining(more: Callable[[], str] = str) -> Iterator[None]:
    """Put an error that says who is gone, and what ``more`` returns, in place of :class:`PeerLost`; or the error of
    another process, where that is why."""
    _more.append(more)
    try:
        yield
    except PeerLost as error:
        _end()
        raise _explained(str(error)) from error
    finally:
        _more.pop()


def _end() -> None:
    _ending.set()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _terminated(*_) -> None:
    _end()
    raise PeerLost("SIGTERM")


@contextmanager
def _silent() -> Iterator[None]:
    """No output but errors; the first process prints the same."""
    sys.stderr.isatty = lambda: False  # progress bars look whether somebody sees them
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _watched() -> Iterator[None]:
    """For the body of a ``with``, SIGTERM ends this process, with its message, even if it waits in compiled code, as
    for a GPU whose peer has gone, where Python's handler does not come to its turn."""
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writing.close()


def _watch(signals: socket.socket) -> None:
    with signals:
        while number := signals.recv(1):
            if number[0] == signal.SIGTERM and not _ending.wait(STUCK):
                error = _explained("SIGTERM")
                if _is_mine_to_tell(error):  # to the log as well, where this process has it
                    print(f"error: {error}", file=sys.stdout if is_first() else sys.stderr, flush=True)
                os._exit(2)


def _explained(reason: str) -> UserError:
    """The error that says why others have gone, or which ones, as far as it can be found out."""
    places = {number: place_of(number) for number in range(world_size())}
    here = {number: pid for number, (host, pid) in places.items() if host == socket.gethostname()}
    store().set(f"ended/{rank()}", "")
    deadline = time.monotonic() + GRACE
    while True:
        for number in places:
            if store().check([f"error/{number}"]):
                return ToldElsewhere(store().get(f"error/{number}").decode())
        lost = [number for number, pid in here.items() if not lives(pid)]
        silent = [number for number in places if not store().check([f"ended/{number}"])]
        if lost or not silent or time.monotonic() > deadline:
            break
        time.sleep(POLL)
    lost = lost or [number for number in silent if number not in here]
    names = " and ".join(f"rank {number} (process {places[number][1]} on {places[number][0]})" for number in lost)
    what = f"{names} {'were' if len(lost) > 1 else 'was'} lost" if lost else f"the run was ended ({reason})"
    return Lost(f"{what}{_more[-1]() if _more else ''}")


def _report(message: str) -> None:
    """Let the others know why this process ends, before they find it gone."""
    with contextlib.suppress(Exception):
        store().set(f"error/{rank()}", message)


def _is_mine_to_tell(error: UserError) -> bool:
    """Whether this process is to print the error that it ends with: each is told once, by the first process where it
    meets it as well; the others give it some time to."""
    if isinstance(error, ToldElsewhere):
        return False
    try:
        key = "lost" if isinstance(error, Lost) else hashlib.sha256(str(error).encode()).hexdigest()
        if key != "lost":
            _report(told_by(rank(), error))
        host, pid = place_of(0)
        waits = not is_first() and (host != socket.gethostname() or lives(pid))
        deadline = time.monotonic() + (GRACE if waits else 0)
        while time.monotonic() < deadline and not store().check([f"told/{key}"]):
            time.sleep(POLL)
        return store().add(f"told/{key}", 1) == 1
    except RuntimeError:  # the store is gone, and torchrun with it
        return is_first()
