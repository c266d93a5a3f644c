"""What Python refuses or does differently on a Windows laptop in China, as replacements of its functions on Linux.

It is a simulation in one process: it does not know files that other processes have open, and C++ libraries read paths
as on Linux. Separators of paths, capitals in names, long paths and line ends are as on Linux. It needs Python 3.11.
Messages are Windows' own in Chinese. The repository is on another drive than the user's folder.
"""

from __future__ import annotations

import builtins
import errno
import io
import locale
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CODE_PAGE = "gbk"  # code page 936, the encoding of files and pipes
MISSING_MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}  # modules that Python has on Unix only
INVALID_CHARACTERS = set('<>:"|?*')  # in names of files
# Windows' numbers of errors: Python's class and number, and Windows' text.
ERRORS: dict[int, tuple[type[OSError], int, str]] = {
    5: (PermissionError, errno.EACCES, "拒绝访问。"),  # access is denied
    32: (PermissionError, errno.EACCES, "另一个程序正在使用此文件"),  # the file is in use by another program
    123: (OSError, errno.EINVAL, "文件名、目录名或卷标语法不正确。"),  # invalid name
    183: (FileExistsError, errno.EEXIST, "无法创建该文件"),  # the file exists
    1314: (OSError, errno.EINVAL, "客户端没有所需的特权。"),  # the user lacks a privilege
}
_open, _os_open, _import, _relpath = io.open, os.open, builtins.__import__, os.path.relpath
_replace, _rename, _unlink, _mkdir = os.replace, os.rename, os.unlink, os.mkdir


def windows_error(number: int, path: object) -> OSError:
    """Return the error with this number of Windows for ``path``, as Python raises it there."""
    class_, python_number, text = ERRORS[number]
    error = class_(python_number, text, os.fspath(path) if isinstance(path, os.PathLike) else path)
    error.winerror = number  # type: ignore[attr-defined]  # Python has it on Windows only
    return error


def is_called_by_code(depth: int) -> bool:
    """Return whether the caller's caller (``depth`` 1) is code of the repository: neither a package nor a test."""
    file = sys._getframe(depth + 1).f_code.co_filename
    return file.startswith(f"{REPOSITORY}/") and not file.startswith((f"{REPOSITORY}/.venv", f"{REPOSITORY}/tests/"))


def is_open(path: str | os.PathLike) -> bool:
    """Return whether this process has the file, or a file in the folder, open or mapped into memory."""
    path, names = os.path.realpath(path), []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:  # that of listdir itself
            continue
    with _open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        names += [line[line.index("/") :].rstrip("\n") for line in maps if "/" in line]
    return any(name == path or name.startswith(f"{path}/") for name in names if os.path.isfile(name))


def check_closed(path: object) -> None:
    """Raise PermissionError if this process has ``path`` open."""
    caller = sys._getframe(2)
    while "pathlib" in caller.f_code.co_filename and caller.f_back:
        caller = caller.f_back
    is_filelock = "filelock" in caller.f_code.co_filename  # on Linux, it removes its open file
    if isinstance(path, (str, os.PathLike)) and not is_filelock and is_open(path):
        raise windows_error(32, path)


def check_name(path: object) -> None:
    """Raise OSError if Windows does not allow a file of this name."""
    name = os.path.basename(os.fsdecode(path)) if isinstance(path, (str, bytes, os.PathLike)) else ""
    if INVALID_CHARACTERS & set(name) or (name.strip(".") and name != name.rstrip(". ")):
        raise windows_error(123, path)


def _simulated_open(file, mode="r", buffering=-1, encoding=None, *args, **kwargs):
    """Open a file: no folder, no name that is not allowed, and by default with the encoding of the code page."""
    if "b" not in mode and encoding in (None, "locale"):
        if is_called_by_code(1):
            raise EncodingWarning(f"open() of {file} without an encoding")
        encoding = CODE_PAGE
    if isinstance(file, (str, bytes, os.PathLike)):
        if "r" not in mode:
            check_name(file)
        if os.path.isdir(file) and not kwargs.get("opener"):  # that of tempfile opens a file in the folder
            raise windows_error(5, file)
    return _open(file, mode, buffering, encoding, *args, **kwargs)


def _simulated_os_open(path, flags, *args, **kwargs):
    """Open a file, but no folder: on Windows, no folder can be synced."""
    if os.path.isdir(path):
        raise windows_error(5, path)
    if flags & os.O_CREAT:
        check_name(path)
    return _os_open(path, flags, *args, **kwargs)


def _simulated_replace(source, target, **kwargs):
    """Rename a file that is not open, in place of one that is not open."""
    check_name(target)
    check_closed(source)
    check_closed(target)
    return _replace(source, target, **kwargs)


def _simulated_rename(source, target, **kwargs):
    """Rename a file that is not open, to a name that no other file has."""
    check_name(target)
    check_closed(source)
    if os.path.lexists(target) and not os.path.samefile(source, target):
        raise windows_error(183, target)
    return _rename(source, target, **kwargs)


def _simulated_unlink(path, **kwargs):
    """Remove a file that is not open."""
    check_closed(path)
    return _unlink(path, **kwargs)


def _simulated_mkdir(path, *args, **kwargs):
    """Make a folder whose name is allowed."""
    check_name(path)
    return _mkdir(path, *args, **kwargs)


def _simulated_symlink(source, target, *args, **kwargs):
    """Refuse a symbolic link, as Windows does to users who are not developers."""
    raise windows_error(1314, target)


def _simulated_relpath(path, start=os.curdir):
    """Return a relative path, but not between the repository and the user's folder."""
    drives = {
        Path(REPOSITORY) in (Path(os.path.abspath(each)), *Path(os.path.abspath(each)).parents)
        for each in (path, start)
    }
    if len(drives) == 2:
        raise ValueError("path is on mount 'C:', start on mount 'D:'")
    return _relpath(path, start)


def _simulated_import(name, globals=None, locals=None, fromlist=(), level=0):
    """Import a module; code of the repository gets none that Python lacks on Windows."""
    if name in MISSING_MODULES and is_called_by_code(1):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return _import(name, globals, locals, fromlist, level)


REPLACEMENTS = [
    (builtins, "open", _simulated_open),
    (io, "open", _simulated_open),
    (builtins, "__import__", _simulated_import),
    (os, "open", _simulated_os_open),
    (os, "replace", _simulated_replace),
    (os, "rename", _simulated_rename),
    (os, "unlink", _simulated_unlink),
    (os, "remove", _simulated_unlink),
    (os, "mkdir", _simulated_mkdir),
    (os, "symlink", _simulated_symlink),
    (os.path, "relpath", _simulated_relpath),
    (locale, "getpreferredencoding", lambda do_setlocale=True: "cp936"),
    (locale, "getencoding", lambda: "cp936"),
    (shutil, "_use_fd_functions", False),  # they open folders
    (tempfile, "TemporaryFile", tempfile.NamedTemporaryFile),  # the former removes its open file
]


def install() -> None:
    """Change this process for good: the functions, the start method of processes, the encoding of its streams."""
    for module, name, value in REPLACEMENTS:
        setattr(module, name, value)
    del os.fork, os.killpg
    if multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method("spawn")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell sets "ignore" for programs in the background
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is not None and not stream.isatty():  # a console takes Unicode
            stream.reconfigure(encoding=CODE_PAGE)
