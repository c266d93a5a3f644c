"""Real processes of our programs, which start at once: forks of a server that has imported them."""

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
WRITES = ("fsync", "replace", "rename")  # of the module os: where a kill finds a file half done
PATIENCE = 300  # seconds


class Ended(NamedTuple):
    code: int  # minus the signal's number
    errors: str  # what the process wrote to standard error


class Child:
    """A process that calls ``function()``, whose result is its exit code."""

    def __init__(self, function: Callable[[], int | None], errors: Path):
        errors.parent.mkdir(parents=True, exist_ok=True)
        self.errors = errors
        self.process = CONTEXT.Process(target=_call, args=(function, str(errors)))
        self.process.start()

    def kill_after(self, seconds: float) -> Ended:
        """SIGKILL, unless it has ended by then."""
        self.process.join(seconds)
        self.process.kill()
        return self.end()

    def end(self) -> Ended:
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"a process still runs after {PATIENCE} s; what it wrote: {self.errors}")
        # A process that was killed at once has written nothing.
        errors = self.errors.read_text(errors="replace") if self.errors.exists() else ""
        return Ended(self.process.exitcode, errors)


def program(module: str, arguments: Sequence[object]) -> Callable[[], int]:
    """What calls ``main`` of a module."""
    return partial(_main, module, [str(argument) for argument in arguments])


def _main(module: str, arguments: list[str]) -> int:
    import torch

    import vlm.images.encoder

    torch.set_num_threads(1)
    vlm.images.encoder._has_openvino = lambda: False  # to compile the encoder would take longer than the runs
    return import_module(module).main(arguments) or 0


def _call(function: Callable[[], int | None], errors: str) -> None:
    # Open as long as the process lives: its traceback comes last. What it prints is in its log.txt.
    sys.stdout, sys.stderr = open(os.devnull, "w"), open(errors, "w", buffering=1)  # noqa: SIM115
    set_start_method("fork", force=True)  # else the server would be the parent of loaders' processes, and live on
    sys.exit(function())


def counting(path: Path, function: Callable[[], int]) -> int:
    """Call ``function``, and write to ``path`` how many steps of writing it made."""
    counter = _count(lambda step: None)
    try:
        return function()
    finally:
        path.write_text(str(next(counter)))


def dying(number: int, function: Callable[[], int]) -> int:
    """Call ``function``; SIGKILL comes just before or after one of its steps of writing, counted from 0."""
    _count(lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == number else None)
    return function()


def _count(at_step: Callable[[int], None]) -> itertools.count:
    counter = itertools.count()

    def counted(real: Callable, *args, **kwargs):
        at_step(next(counter))
        result = real(*args, **kwargs)
        at_step(next(counter))
        return result

    for name in WRITES:
        setattr(os, name, partial(counted, getattr(os, name)))
    return counter
