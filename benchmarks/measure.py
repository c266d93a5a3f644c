"""Measurement of time, peak memory and the machine's rate of matrix products."""

from __future__ import annotations

import contextlib
import ctypes
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch

from dassl.utils import tune_malloc
from dassl.utils.env import M_MMAP_THRESHOLD, M_TOP_PAD, M_TRIM_THRESHOLD


@dataclass
class Times:
    """Measured times of a computation in seconds, one entry a turn."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median wall time, in seconds."""
        return statistics.median(self.wall)

    @property
    def cpu_median(self) -> float:
        """The median CPU time, in seconds."""
        return statistics.median(self.cpu)

    def __str__(self) -> str:
        """Return "median (least to greatest)" of the wall time."""
        return f"{self.median:.4g} ({min(self.wall):.4g} to {max(self.wall):.4g})"


def measure_in_turns(computations: dict[str, tuple[Callable, Callable]], turns: int) -> dict[str, Times]:
    """Return the times of computations by name, each called once a turn, so that a drifting machine slows all alike.

    A computation is a pair: the timed function, and one called before it to set the allocator. Before ``turns`` comes
    a turn that is not counted.
    """
    times = {name: Times() for name in computations}
    for turn in range(turns + 1):
        for name, (compute, set_allocator) in computations.items():
            set_allocator()
            wall, cpu = time.perf_counter(), time.process_time()
            compute()
            if turn:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].cpu.append(time.process_time() - cpu)
    return times


def reset_malloc() -> None:
    """Undo ``dassl.utils.tune_malloc``: set the thresholds to the values that glibc chooses with large tensors."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 64 << 20), (M_TOP_PAD, 0)):
            mallopt(option, value)


def measure_matmul_rate(turns: int = 15) -> float:
    """Return the floating-point operations a second in products of 2048 x 2048 fp32 matrices, median of ``turns``."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = measure_in_turns({"product": (lambda: a @ b, tune_malloc)}, turns)["product"]
    return 2 * 2048**3 / times.median


def measure_peak_memory(function: Callable, *arguments: object) -> float:
    """Return the GB of a new process's peak when it calls ``function(*arguments)``; NaN out of memory or of Linux."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_call_and_read_peak, function, *arguments).result()
        except (MemoryError, RuntimeError, OSError):
            return float("nan")


def _call_and_read_peak(function: Callable, *arguments: object) -> float:
    """Call ``function(*arguments)`` and return the peak memory of this process since its start, in GB."""
    function(*arguments)
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # ru_maxrss would include the parent process's peak
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024 / 1e9
