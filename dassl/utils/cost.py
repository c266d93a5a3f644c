"""What a run costs: seconds, CPU seconds and peak memory of its process, for the record."""

from __future__ import annotations

import os
import sys
import time

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]


def _cpu_seconds() -> float:
    """Return the CPU seconds that this process and those of its child processes that have ended took so far."""
    return sum(os.times()[:4])


def peak_memory() -> int:
    """Return the most memory in bytes that this process has had so far (its resident set)."""
    if resource is None:
        import psutil

        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class CostMeter:
    """Measures what has been spent since it was made."""

    runs = 0  # meters made in this process so far

    def __init__(self) -> None:
        CostMeter.runs += 1
        self._start, self._cpu_start = time.time(), _cpu_seconds()

    def read(self) -> dict[str, float]:
        """Return the cost by the record's keys.

        ``seconds`` and ``cpu_seconds`` are those since this meter was made; the latter are of all threads, with data
        loading processes that have ended, except on Windows. ``peak_memory`` is in bytes and of the process since its
        start. If the process had runs before this one, as in a sweep, ``earlier_runs`` counts them: the peak may be
        theirs.
        """
        cost = {
            "seconds": round(time.time() - self._start, 2),
            "cpu_seconds": round(_cpu_seconds() - self._cpu_start, 2),
            "peak_memory": peak_memory(),
        }
        return cost | ({"earlier_runs": CostMeter.runs - 1} if CostMeter.runs > 1 else {})
