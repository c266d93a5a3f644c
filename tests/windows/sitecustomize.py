"""What Python does differently on a Windows laptop in China; imported by each Python process under tests.windows.

This is Linux with Windows' refusals, in the process itself: no other process's open files, no drive letters, and no C++
code that reads a path in the ANSI code page.
"""

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
CODE_PAGE = "gbk"  # code page 936
IN_USE = "另一个程序正在使用此文件"  # Windows words its errors in the system's language
MISSING_MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}  # modules that Python has on Unix only
INVALID_CHARACTERS = set('<>:"|?*')  # in names of files


def windows_error(class_: type[OSError], number: int, winerror: int, text: str, path: object) -> OSError:
    """Return an error as Python raises it on Windows: with a translated text, and ``winerror``."""
    error = class_(number, text, os.fspath(path) if isinstance(path, os.PathLike) else path)
    error.winerror = winerror
    return error


def called_from_repository(depth: int) -> bool:
    """Return whether the frame ``depth`` above the caller is of the repository's code: no package, no test."""
    file = sys._getframe(depth + 1).f_code.co_filename
    is_package = "site-packages" in file or ".venv" in file
    return file.startswith(f"{REPOSITORY}{os.sep}") and not is_package and not file.startswith(f"{REPOSITORY}/tests/")


def find_open_file(path: str | os.PathLike) -> str | None:
    """Return the file at ``path``, or in the folder ``path``, that this process has open or mapped; None if none."""
    path = os.path.realpath(path)
    names = []
    for descriptor in _listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:  # the descriptor of listdir itself
            continue
    with _open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        names += [line.split(maxsplit=5)[-1].rstrip("\n") for line in maps if "/" in line]
    names = [name for name in names if name == path or name.startswith(f"{path}/")]
    return next((name for name in names if _isfile(name)), None)


def refuse_if_open(path: str | os.PathLike) -> None:
    """Raise PermissionError if this process has the file, or a file in the folder, open."""
    if isinstance(path, (str, os.PathLike)) and find_open_file(path):
        raise windows_error(PermissionError, errno.EACCES, 32, IN_USE, path)


def refuse_invalid_name(path: object) -> None:
    """Raise OSError for a new file whose name Windows does not allow."""
    name = os.path.basename(os.fsdecode(path)) if isinstance(path, (str, bytes, os.PathLike)) else ""
    if INVALID_CHARACTERS & set(name) or (name.rstrip(". ") != name and name.strip(".")):
        raise windows_error(OSError, errno.EINVAL, 123, "文件名、目录名或卷标语法不正确。", path)


_open, _os_open, _listdir, _isfile, _import = io.open, os.open, os.listdir, os.path.isfile, builtins.__import__
_replace, _rename, _unlink, _rmdir, _mkdir = os.replace, os.rename, os.unlink, os.rmdir, os.mkdir


def open_(file, mode="r", buffering=-1, encoding=None, *args, **kwargs):
    if "b" not in mode and encoding in (None, "locale"):
        if called_from_repository(1):
            raise EncodingWarning(f"open() of {file} without an encoding")
        encoding = CODE_PAGE
    if isinstance(file, (str, bytes, os.PathLike)):
        if set(mode) & set("wxa+"):
            refuse_invalid_name(file)
        if os.path.isdir(file) and not kwargs.get("opener"):  # tempfile's opener opens a file in the folder
            raise windows_error(PermissionError, errno.EACCES, 5, "拒绝访问。", file)
    return _open(file, mode, buffering, encoding, *args, **kwargs)


def os_open(path, flags, *args, **kwargs):
    if os.path.isdir(path):
        raise windows_error(PermissionError, errno.EACCES, 5, "拒绝访问。", path)
    if flags & os.O_CREAT:
        refuse_invalid_name(path)
    return _os_open(path, flags, *args, **kwargs)


def replace(source, target, **kwargs):
    refuse_invalid_name(target)
    refuse_if_open(source)
    refuse_if_open(target)
    return _replace(source, target, **kwargs)


def rename(source, target, **kwargs):
    refuse_invalid_name(target)
    refuse_if_open(source)
    if os.path.lexists(target):
        raise windows_error(FileExistsError, errno.EEXIST, 183, "无法创建该文件", target)
    return _rename(source, target, **kwargs)


def unlink(path, **kwargs):
    callers = sys._getframe(1), sys._getframe(1).f_back  # the second, if the first is of pathlib
    if not any("filelock" in frame.f_code.co_filename for frame in callers if frame):  # another class on Windows
        refuse_if_open(path)
    return _unlink(path, **kwargs)


def mkdir(path, *args, **kwargs):
    refuse_invalid_name(path)
    return _mkdir(path, *args, **kwargs)


def symlink(source, target, *args, **kwargs):
    raise windows_error(OSError, errno.EINVAL, 1314, "客户端没有所需的特权。", target)


def import_(name, globals=None, locals=None, fromlist=(), level=0):
    if name in MISSING_MODULES and called_from_repository(1):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return _import(name, globals, locals, fromlist, level)


builtins.open = io.open = open_
builtins.__import__ = import_
os.open, os.replace, os.rename, os.unlink, os.remove = os_open, replace, rename, unlink, unlink
os.mkdir, os.symlink = mkdir, symlink
del os.fork, os.killpg
tempfile.TemporaryFile = tempfile.NamedTemporaryFile  # the former unlinks its open file
shutil._use_fd_functions = False  # they open folders
locale.getpreferredencoding = lambda do_setlocale=True: "cp936"
locale.getencoding = lambda: "cp936"
if multiprocessing.get_start_method(allow_none=True) is None:
    multiprocessing.set_start_method("spawn")
signal.signal(signal.SIGINT, signal.default_int_handler)
for stream in (sys.stdin, sys.stdout, sys.stderr):
    if stream is not None and not stream.isatty():  # a console takes Unicode; pipes and files have the code page
        stream.reconfigure(encoding=CODE_PAGE)
