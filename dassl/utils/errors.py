"""The error for what a user can hint: one message, exit code 2, no traceback. Anything else is a bug."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from pickle import UnpicklingError


class UserError(Exception):
    """Says what is wrong, where, and what would be right."""

    def __str__(self) -> str:
        # A DataLoader worker hands its error over inside its whole traceback; the message is what follows our name.
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


class UnreadableImageError(UserError):
    """A picture that cannot be read: ``path`` and ``reason``."""

    path = reason = ""

    @classmethod
    def of(cls, path: str | os.PathLike, reason: str) -> UnreadableImageError:
        error = cls(f"cannot read {path} as an image: {reason}")
        error.path, error.reason = str(path), reason
        return error


DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, the user's quota, the process's limit


class NonFiniteError(UserError, FloatingPointError):
    """A model has diverged."""


def write_error(path: str | os.PathLike, error: OSError) -> UserError:
    """The error to raise where ``path`` cannot be written."""
    hint = (
        ". What was written before is whole: make room, and the same command goes on"
        if error.errno in DISK_FULL_ERRNOS
        else ""
    )
    return UserError(f"cannot write {path}: {error.strerror or error}{hint}")


def suggest_name(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the most similar known one (if any is), then all of them."""
    known = sorted(known)
    folded = {k.lower(): k for k in known}
    match = get_close_matches(name.lower(), folded, n=1)
    hint = f'did you mean "{folded[match[0]]}"? ' if match else ""
    return f"{hint}Known: {', '.join(known) or 'none'}"


def error_reason(error: BaseException) -> str:
    """The first line of an error's message, for a message of ours; its class where it has none."""
    if isinstance(error, UnpicklingError):  # PyTorch's advice, to load the file without its safeguard, is a bad one
        return "it is no file of torch.save, or holds more than tensors and plain values"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":")


def _escape_control_characters(text: str) -> str:
    """Without what steers a terminal: names from outside stand in messages."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def interrupted_error(where: str, goes_on: str, script: str, argv: list[str]) -> KeyboardInterrupt:
    """Return a Ctrl-C that says where it came and which command goes on; :func:`command_line` prints it."""
    launcher = ["python"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1")]
    again = shlex.join([*launcher, os.path.relpath(script), *argv])
    return KeyboardInterrupt(f"stopped {where}; this goes on {goes_on}:\n  {again}")


def command_line(when_stopped: str = "stopped") -> Callable[[Callable], Callable]:
    """A decorator for ``main(argv)`` that turns its end into an exit code: what it returns or 0; 2 for a
    :class:`UserError`, whose message is printed, and where the disk is full; 130 for Ctrl-C, with ``when_stopped`` or
    what the interrupt itself says; 141, without a word, where the reader of its output, such as ``head``, has seen
    enough. A bug keeps its traceback."""

    def decorate(main: Callable) -> Callable[..., int]:
        @wraps(main)
        def guarded(argv: list[str] | None = None) -> int:
            for stream in (sys.stdout, sys.stderr):
                if hasattr(stream, "reconfigure"):  # a console that cannot show a letter must not end a run
                    stream.reconfigure(errors="backslashreplace")
            try:
                return main(argv) or 0
            except UserError as error:
                print(f"error: {_escape_control_characters(str(error))}", file=sys.stderr)
                return 2
            except KeyboardInterrupt as interrupt:
                print(f"\n{str(interrupt) or when_stopped}", file=sys.stderr)
                return 130
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python itself flushes it once more
                return 141
            except OSError as error:  # from a library that writes files of its own
                if error.errno not in DISK_FULL_ERRNOS:
                    raise
                print(f"error: {write_error(error.filename or 'a file', error)}", file=sys.stderr)
                return 2

        return guarded

    return decorate
