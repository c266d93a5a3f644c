"""Child processes of our programs that start at once, as forks of a server that has imported the programs."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import NamedTuple

CONTEXT = get_context("forkserver")
IMPORTS = "train trainers datasets tools.sweep torch.utils.tensorboard sklearn.datasets sklearn.metrics"
CONTEXT.set_forkserver_preload([*IMPORTS.split(), "tests.stress.full_disk"])
WRITES = ("fsync", "replace", "rename")  # functions of os around which a kill can leave an incomplete file
TIMEOUT = 300  # seconds, far more than a run takes


class Ended(NamedTuple):
    """The end of a process."""

    code: int  # the exit code; minus the number of the signal that killed it
    errors: str  # the text that it wrote to standard error


class Child:
    """A process that calls ``function()`` and exits with its result; ``errors`` is the file of its standard error."""

    def __init__(self, function: Callable[[], int | None], errors: Path):
        errors.parent.mkdir(parents=True, exist_ok=True)
        self.errors = errors
        self.process = CONTEXT.Process(target=_call, args=(function, str(errors)))
        self.process.start()

    def kill_after(self, seconds: float) -> Ended:
        """Kill the process (SIGKILL) after some seconds, unless it has ended by then."""
        self.process.join(seconds)
        self.process.kill()
        return self.end()

    def end(self) -> Ended:
        """Wait for the end of the process; raise ``TimeoutError`` after ``TIMEOUT`` seconds."""
        self.process.join(TIMEOUT)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"a process still runs after {TIMEOUT} s; its standard error: {self.errors}")
        # A process that was killed at once has not created the file.
        errors = self.errors.read_text(errors="replace", encoding="utf-8") if self.errors.exists() else ""
        return Ended(self.process.exitcode, errors)


def make_program(module: str, arguments: Sequence[object]) -> Callable[[], int]:
    """Return a function that calls ``main`` of a module and returns its exit code."""
    return partial(_main, module, [str(argument) for argument in arguments])


def _main(module: str, arguments: list[str]) -> int:
    """Call ``main`` of a module with one thread and without OpenVINO; return the exit code."""
    import torch

    import vlm.images.encoder

    torch.set_num_threads(1)
    vlm.images.encoder._has_openvino = lambda: False  # compiling the encoder takes longer than the runs
    return import_module(module).main(arguments) or 0


def _call(function: Callable[[], int | None], errors: str) -> None:
    """Call ``function`` in this process and exit with its result; standard error goes to the file ``errors``."""
    # The file stays open, as a traceback comes last. Standard output is dropped: a run copies it to its log.txt.
    sys.stdout, sys.stderr = open(os.devnull, "w", encoding="utf-8"), open(errors, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    set_start_method(
        "fork", force=True
    )  # as children of the fork server, workers of loaders would outlive this process
    sys.exit(function())


def count_writes(path: Path, function: Callable[[], int]) -> int:
    """Call ``function`` and write to ``path`` the number of its write steps (before and after each of ``WRITES``)."""
    counter = _count_write_steps(lambda step: None)
    try:
        return function()
    finally:
        path.write_text(str(next(counter)), encoding="utf-8")


def die_at_write(number: int, function: Callable[[], int]) -> int:
    """Call ``function`` and kill this process (SIGKILL) at the write step ``number``, counted from 0."""
    _count_write_steps(lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == number else None)
    return function()


def _count_write_steps(at_step: Callable[[int], None]) -> itertools.count:
    """Call ``at_step(number)`` before and after each later call of ``WRITES``; return the counter of these steps."""
    counter = itertools.count()

    def counted(original: Callable, *args, **kwargs):
        at_step(next(counter))
        result = original(*args, **kwargs)
        at_step(next(counter))
        return result

    for name in WRITES:
        setattr(os, name, partial(counted, getattr(os, name)))
    return counter
