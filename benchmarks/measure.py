"""Timing in turns, so that a machine whose speed drifts is fair to all; peak memory; the machine's limit."""

from __future__ import annotations

import ctypes
import platform
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch

from dassl.utils import get_package_versions, tune_malloc
from dassl.utils.env import M_MMAP_THRESHOLD, M_TOP_PAD, M_TRIM_THRESHOLD


@dataclass
class Times:
    """Seconds of a computation, once a turn."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu)

    def __str__(self) -> str:
        return f"{self.median:.4g} ({min(self.wall):.4g} to {max(self.wall):.4g})"


def in_turns(computations: dict[str, tuple[Callable[[], object], Callable[[], None]]], turns: int) -> dict[str, Times]:
    """Each computation once a turn, after one turn that does not count. Each comes with what sets its allocator."""
    times = {name: Times() for name in computations}
    for turn in range(turns + 1):
        for name, (compute, allocator) in computations.items():
            allocator()
            wall, cpu = time.perf_counter(), time.process_time()
            compute()
            if turn:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].cpu.append(time.process_time() - cpu)
    return times


def default_allocator() -> None:
    """What glibc's allocator comes to by itself in a program with large tensors: blocks from 32 MB on go back to the
    system at once, as :func:`dassl.utils.tune_malloc` prevents."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 64 << 20), (M_TOP_PAD, 0)):
        mallopt(option, value)


def matmul_rate(turns: int = 15) -> float:
    """Floating-point operations a second of a product of large fp32 matrices, the median of some turns."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = in_turns({"product": (lambda: a @ b, tune_malloc)}, turns)["product"]
    return 2 * 2048**3 / times.median


def peak_memory(function: Callable, *arguments: object) -> float:
    """Peak memory of a fresh process that calls ``function``, in GB; NaN if it ends for want of memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_peak, function, *arguments).result()
        except (MemoryError, RuntimeError, OSError):
            return float("nan")


def _peak(function: Callable, *arguments: object) -> float:
    import resource

    function(*arguments)
    try:  # the system's own figure would begin with the peak of the parent process
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024 / 1e9
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def machine() -> str:
    """One line about the machine and the versions."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else []
    name, versions = models[0] if models else platform.machine(), get_package_versions()
    told = ", ".join(f"{package} {versions[package]}" for package in ("python", "torch", "openvino"))
    return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}; {told}"
