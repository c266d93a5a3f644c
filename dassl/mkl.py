"""MKL's strict mode, in which the bits of a matrix product do not depend on the number of threads.

MKL is PyTorch's library for matrix products on x86. It reads MKL_CBWR at its first product. Source: Intel, oneMKL
Developer Guide, "Reproducibility Conditions".
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "MKL_CBWR"  # the environment variable: an instruction set, and a flag
STRICT_FLAG = 0x10000  # of MKL's answer; the lower bits are the number of the instruction set
INSTRUCTION_SETS = {1: "off", 2: "AUTO", 3: "COMPATIBLE", 10: "AVX2", 12: "AVX512", 14: "AVX512_E1"}  # MKL's numbers
PF_AVX512F = 41  # Windows' number of the processor feature AVX-512


def enable_strict_mode() -> None:
    """Request the strict mode of this processor's widest instructions, unless the environment sets a mode.

    On processors of other makers than Intel, MKL takes AUTO in place of the instruction set.
    """
    os.environ.setdefault(VARIABLE, f"{'AVX512' if _has_avx512() else 'AVX2'},STRICT")


def _has_avx512() -> bool:
    """Return whether the processor has the AVX-512 instructions; PyTorch, which knows, is not loaded for it."""
    if sys.platform == "win32":
        import ctypes

        return bool(ctypes.windll.kernel32.IsProcessorFeaturePresent(PF_AVX512F))
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # only its first core: with many, the rest takes long
            return "avx512bw" in next((line for line in lines if line.startswith("flags")), "")
    except OSError:  # not Linux
        return False


def describe_cpu_sums(depends_on_threads: bool = False) -> str:
    """Return what the last bits of sums on the CPU depend on, such as ``MKL AVX512,STRICT`` or ``MKL AUTO, 2 threads``.

    ``depends_on_threads``: whether other sums than matrix products depend on the number of threads.
    """
    import ctypes

    import torch

    mode, is_strict = "no MKL", False
    if torch.backends.mkl.is_available():
        mode = f"MKL {os.environ.get(VARIABLE, 'off')}"  # where MKL cannot be asked, as on Windows
        try:
            answer = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).mkl_serv_cbwr_get(-1)
            mode = f"MKL {INSTRUCTION_SETS.get(answer & ~STRICT_FLAG, hex(answer))}{',STRICT' * (answer > STRICT_FLAG)}"
        except (OSError, AttributeError):
            pass
        is_strict = mode.endswith("STRICT")
    threads = torch.get_num_threads()
    return mode if is_strict and not depends_on_threads else f"{mode}, {threads} thread{'s' * (threads > 1)}"
