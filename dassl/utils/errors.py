"""Errors that a user can correct: one message, exit code 2, no traceback. Any other exception is a bug."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from pickle import UnpicklingError
from types import ModuleType

from .paths import relpath

PIP_MIRROR_HINT = "in China, add -i https://pypi.tuna.tsinghua.edu.cn/simple"  # Tsinghua University's mirror of PyPI


class UserError(Exception):
    """An error that a user can correct; its message states what is wrong, where, and what to do."""

    def __str__(self) -> str:
        """Return the message without the traceback that a DataLoader worker puts before it."""
        # The worker's text is its whole traceback, whose last line is "<class name>: <message>".
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


class UnreadableImageError(UserError):
    """An image file that cannot be read; ``path`` names the file, ``reason`` states the cause."""

    path = reason = ""

    @classmethod
    def for_file(cls, path: str | os.PathLike, reason: str) -> UnreadableImageError:
        """Return the error for the image file ``path``. A DataLoader worker passes it on without its attributes."""
        error = cls(f"cannot read {path} as an image: {reason}")
        error.path, error.reason = str(path), reason
        return error


# Error numbers after which freeing space helps: a full disk, the user's quota, the process's limit on file sizes.
DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NonFiniteError(UserError, FloatingPointError):
    """A model's output is infinite or not a number (NaN): the model has diverged."""


# Windows' numbers: access denied (of a replacement), sharing violation, lock violation, file mapped into memory.
IN_USE_WINERRORS = {5, 32, 33, 1224}


def is_in_use(error: OSError) -> bool:
    """Return whether an error of Windows can mean that a program has the file open; other systems raise no such one."""
    return getattr(error, "winerror", None) in IN_USE_WINERRORS


def write_error(path: str | os.PathLike, error: OSError) -> UserError:
    """Return the error that reports that ``path`` cannot be written.

    For a full disk, and for a file that another program holds open, the message says what to do.
    """
    hint = ""
    if error.errno in DISK_FULL_ERRNOS:
        hint = ". Earlier files are intact: free some space, then run the same command again"
    elif is_in_use(error):
        hint = ". If Excel, an image viewer or another program has it open, close it there; then run this again"
    return UserError(f"cannot write {path}: {error.strerror or error}{hint}")


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelt name: the most similar known name, if one is similar, then all known names."""
    known = sorted(known)
    by_lower_case = {k.lower(): k for k in known}
    matches = get_close_matches(name.lower(), by_lower_case, n=1)
    hint = f'did you mean "{by_lower_case[matches[0]]}"? ' if matches else ""
    return f"{hint}Known: {', '.join(known) or 'none'}"


def import_optional(module: str, package: str, user: str) -> ModuleType:
    """Import and return ``module``; if missing, raise UserError: ``user`` needs ``package``, to be installed by pip."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"{user} needs the package {package}: pip install {package} ({PIP_MIRROR_HINT})") from error


def error_reason(error: BaseException) -> str:
    """Return the first line of an error's message (for UnpicklingError, a better text); without one, the class name."""
    if isinstance(error, UnpicklingError):  # PyTorch's message advises to load the file unsafely
        return "it is no file of torch.save, or holds more than tensors and plain values (save a model's state_dict())"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":")


def _escape_control_characters(text: str) -> str:
    """Return ``text`` with control characters but newlines escaped: a file's name must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def interrupted_error(where: str, resume_point: str, script: str, argv: list[str]) -> KeyboardInterrupt:
    """Return a KeyboardInterrupt whose message states where the program stopped, and the command that resumes it.

    Args:
        where: place of the stop, such as "in epoch 4 of 6".
        resume_point: place from which the command resumes, such as "after epoch 2".
        script: path of the program; ``argv`` are its arguments.
    """
    launcher = ["python"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1")]
    command = shlex.join([*launcher, relpath(script), *argv])
    return KeyboardInterrupt(f"stopped {where}; this command resumes {resume_point}:\n  {command}")


def command_line(interrupt_message: str = "stopped") -> Callable[[Callable], Callable]:
    """Return a decorator for ``main(argv)`` that turns results and errors into exit codes.

    The exit code is the return value, or 0 for None; 2 for a ``UserError``, a full disk, or a file that another
    program holds open; 130 for a KeyboardInterrupt (Ctrl-C); 141 if the reader of standard output, such as ``head``,
    has closed it. For 2 and 130, the message goes to stderr; ``interrupt_message`` replaces an empty one. Other
    exceptions are raised.
    """

    def decorate(main: Callable) -> Callable[..., int]:
        """Return ``main`` with an exit code as its result."""

        @wraps(main)
        def main_with_exit_code(argv: list[str] | None = None) -> int:
            """Return the exit code of ``main(argv)``."""
            for stream in (sys.stdout, sys.stderr):
                if hasattr(stream, "reconfigure"):  # a console that cannot show a letter must not end a run
                    stream.reconfigure(errors="backslashreplace")
            try:
                return main(argv) or 0
            except UserError as error:
                print(f"error: {_escape_control_characters(str(error))}", file=sys.stderr)
                return 2
            except KeyboardInterrupt as interrupt:
                print(f"\n{str(interrupt) or interrupt_message}", file=sys.stderr)
                return 130
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at its exit
                return 141
            except OSError as error:  # from a library that writes files
                if error.errno not in DISK_FULL_ERRNOS and not is_in_use(error):
                    raise
                print(f"error: {write_error(error.filename or 'a file', error)}", file=sys.stderr)
                return 2

        return main_with_exit_code

    return decorate
