"""Disks that fill, limits on file sizes: one message, and nothing is lost."""

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

EPOCHS, FULL_AFTER = 6, 3
WORDS = training("CoOp", "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", EPOCHS, "TRAIN.CHECKPOINT_FREQ", 1)
RUN = Scenario("train.py CoOp", "train", WORDS)
# What fails -> the limit on file sizes that comes in the middle of training, in bytes. By then, a log has some 10 kB, a
# checkpoint more than 30.
LIMITS = {"model.pth.tar-4": 30_000, "log.txt": 4_000}
NEW_MOUNTS, NEW_USERS = 0x00020000, 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER
PRIVATE, RECURSIVE = 1 << 18, 1 << 14  # MS_PRIVATE, MS_REC


def after_epoch(number: int, act: Callable[[], None], command: Callable[[], int]) -> int:
    """Run ``command``; ``act`` when ``number`` epochs are done and saved."""
    real = SimpleTrainer.after_epoch

    def acting(self: SimpleTrainer) -> None:
        real(self)
        if self.epoch + 1 == number:
            act()

    SimpleTrainer.after_epoch = acting
    try:
        return command()
    finally:
        SimpleTrainer.after_epoch = real


def file_too_large(folder: Path, what: str) -> Ended:
    """A run whose file ``what`` grows over the limit, then again without one; returns how the first one ended.

    Raises:
        AssertionError: the last checkpoint was harmed, or the run did not go on from it to what it would have been.
    """
    command = RUN.command(folder)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (LIMITS[what],) * 2)
    ended = Child(partial(after_epoch, FULL_AFTER, limit, command), folder / "limited").end()
    assert load_checkpoint(latest_checkpoint(folder / "output/prompt_learner"))["epoch"] == FULL_AFTER
    check(Child(command, folder / "errors").end(), alone(folder.parent), folder, what)
    assert f"epoch [{FULL_AFTER}/" not in (folder / "output/log.txt").read_text(), "it began anew"
    return ended


def alone(folder: Path) -> Path:
    """The folder of an undisturbed run, made below ``folder`` once."""
    place = folder / "undisturbed"
    if not place.is_dir():
        ended = Child(RUN.command(place), place / "errors").end()
        assert ended.code == 0, ended
    return place


def mount(place: Path) -> None:
    """Mount a tmpfs of 3 MiB that this process and its children alone see; ``OSError`` where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    place.mkdir(parents=True, exist_ok=True)
    for function, *arguments in (
        ("unshare", NEW_MOUNTS if os.getuid() == 0 else NEW_MOUNTS | NEW_USERS),
        ("mount", b"none", b"/", None, PRIVATE | RECURSIVE, None),
        ("mount", b"tmpfs", bytes(place), b"tmpfs", 0, b"size=3m"),
    ):
        if getattr(libc, function)(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), function)


def can_mount(folder: Path) -> bool:
    return Child(partial(mount, folder / "mounted"), folder / "mount").end().code == 0


def disk_full(folder: Path) -> Ended:
    """As :func:`file_too_large`, on a disk that fills; needs :func:`can_mount`."""
    ended = Child(partial(_on_tmpfs, folder), folder / "errors").end()
    (folder / "copy").rename(folder / "output")
    check(ended, alone(folder.parent), folder, "disk full")
    return Ended(int((folder / "code").read_text()), ended.errors)


def _on_tmpfs(folder: Path) -> int:
    output = folder / "output"
    mount(output)
    command = RUN.command(folder)
    (folder / "code").write_text(str(after_epoch(FULL_AFTER, partial(_fill, output / "ballast"), command)))
    assert load_checkpoint(latest_checkpoint(output / "prompt_learner"))["epoch"] == FULL_AFTER
    (output / "ballast").unlink()
    code = command()
    shutil.copytree(output, folder / "copy")
    return code


def _fill(path: Path) -> None:
    """Take all the space that is left."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while file.write(b"0" * size):
                    pass
            except OSError:
                continue
