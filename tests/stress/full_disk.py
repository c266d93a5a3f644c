"""Runs that fill a disk or exceed a limit on file sizes: they end with one message and resume without a loss."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dassl.engine import SimpleTrainer
from dassl.utils import load_checkpoint
from dassl.utils.checkpoint import latest_checkpoint
from tests.stress.children import Child, Ended
from tests.stress.kills import Scenario, check, training

EPOCHS, FULL_AFTER = 6, 3  # the disk fills in the middle of the run
WORDS = training("CoOp", "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", EPOCHS, "TRAIN.CHECKPOINT_FREQ", 1)
RUN = Scenario("train.py CoOp", "train", WORDS)
# By name of the file whose write fails: the limit on file sizes in bytes, set in the middle of training. By then, a log
# has some 10 kB, a checkpoint more than 30 kB.
LIMITS = {"model.pth.tar-4": 30_000, "log.txt": 4_000}
NEW_MOUNTS, NEW_USERS = 0x00020000, 0x10000000  # CLONE_NEWNS and CLONE_NEWUSER of sched.h
PRIVATE, RECURSIVE = 1 << 18, 1 << 14  # MS_PRIVATE and MS_REC of sys/mount.h


def after_epoch(number: int, act: Callable[[], None], command: Callable[[], int]) -> int:
    """Return the exit code of ``command()``; call ``act`` once ``number`` epochs are trained and saved."""
    original = SimpleTrainer.after_epoch

    def acting_after_epoch(self: SimpleTrainer) -> None:
        original(self)
        if self.epoch + 1 == number:
            act()

    SimpleTrainer.after_epoch = acting_after_epoch
    try:
        return command()
    finally:
        SimpleTrainer.after_epoch = original


def file_too_large(folder: Path, name: str) -> Ended:
    """Run training until the file ``name`` exceeds its limit, then resume it without a limit; return the first end.

    Raises:
        AssertionError: the last checkpoint is damaged, or the resumed run differs from the undisturbed one.
    """
    command = RUN.command(folder)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (LIMITS[name],) * 2)
    ended = Child(partial(after_epoch, FULL_AFTER, limit, command), folder / "limited").end()
    assert load_checkpoint(latest_checkpoint(folder / "output/prompt_learner"))["epoch"] == FULL_AFTER
    check(Child(command, folder / "errors").end(), undisturbed_run(folder.parent), folder, name)
    assert f"epoch [{FULL_AFTER}/" not in (folder / "output/log.txt").read_text(encoding="utf-8"), "the run began anew"
    return ended


def undisturbed_run(folder: Path) -> Path:
    """Return the folder of the undisturbed run below ``folder``; execute the run the first time."""
    run_folder = folder / "undisturbed"
    if not run_folder.is_dir():
        ended = Child(RUN.command(run_folder), run_folder / "errors").end()
        assert ended.code == 0, ended
    return run_folder


def mount(target: Path) -> None:
    """Mount a tmpfs of 3 MiB at ``target`` for this process and its children; ``OSError`` where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    target.mkdir(parents=True, exist_ok=True)
    for function, *arguments in (
        ("unshare", NEW_MOUNTS if os.getuid() == 0 else NEW_MOUNTS | NEW_USERS),
        ("mount", b"none", b"/", None, PRIVATE | RECURSIVE, None),
        ("mount", b"tmpfs", bytes(target), b"tmpfs", 0, b"size=3m"),
    ):
        if getattr(libc, function)(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), function)


def can_mount(folder: Path) -> bool:
    """Return whether this user may mount a tmpfs."""
    return Child(partial(mount, folder / "mounted"), folder / "mount").end().code == 0


def disk_full(folder: Path) -> Ended:
    """Run training until its disk is full, then resume it with free space; return the first end.

    Raises:
        AssertionError: as ``file_too_large``. Needs ``can_mount``.
    """
    ended = Child(partial(_on_tmpfs, folder), folder / "errors").end()
    (folder / "copy").rename(folder / "output")
    check(ended, undisturbed_run(folder.parent), folder, "disk full")
    return Ended(int((folder / "code").read_text(encoding="utf-8")), ended.errors)


def _on_tmpfs(folder: Path) -> int:
    """Do the work of ``disk_full`` in the process that sees the tmpfs; return the exit code of the resumed run."""
    output = folder / "output"
    mount(output)
    command = RUN.command(folder)
    (folder / "code").write_text(
        str(after_epoch(FULL_AFTER, partial(_fill, output / "ballast"), command)), encoding="utf-8"
    )
    assert load_checkpoint(latest_checkpoint(output / "prompt_learner"))["epoch"] == FULL_AFTER
    (output / "ballast").unlink()
    code = command()
    shutil.copytree(output, folder / "copy")
    return code


def _fill(path: Path) -> None:
    """Write a file that takes all free space of its disk."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while file.write(b"0" * size):
                    pass
            except OSError:
                continue
