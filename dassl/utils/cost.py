"""What a run costs: seconds, CPU seconds and peak memory of its process, for the record."""

from __future__ import annotations

import os
import sys
import time


def peak_memory() -> int:
    """Return the most memory in bytes that this process has had so far (its resident set)."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)  # the second: tests.windows on another system
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class CostMeter:
    """Measures what has been spent since it was made."""

    meters = 0  # made in this process so far

    def __init__(self) -> None:
        CostMeter.meters += 1
        self._start, self._times = time.time(), os.times()

    def read(self) -> dict[str, float]:
        """Return the cost by the record's keys.

        ``cpu_seconds`` are of all threads and, except on Windows, of child processes that have ended. ``peak_memory``,
        in bytes, is of the process since its start. If it had runs before, as in a sweep, ``earlier_runs`` counts them:
        the peak may be theirs.
        """
        cpu_seconds = sum(os.times()[:4]) - sum(self._times[:4])
        cost = {"seconds": round(time.time() - self._start, 2), "cpu_seconds": round(cpu_seconds, 2)}
        earlier = {"earlier_runs": CostMeter.meters - 1} if CostMeter.meters > 1 else {}
        return {**cost, "peak_memory": peak_memory(), **earlier}
