"""The machine and the versions that a run uses, for its log and its record; settings of the C library's allocator."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # options of mallopt, as numbered in malloc.h
PACKAGES = (  # those whose version can change a result
    *("torch", "torchvision", "openai-clip", "numpy", "pillow", "scikit-learn", "scipy", "yacs", "openvino"),
    *("ftfy", "regex", "open_clip_torch", "timm", "transformers", "tokenizers"),
)


def tune_malloc() -> None:
    """Let glibc, where it is the C library, reuse the memory of freed tensors for new ones.

    By default glibc gives large blocks back to the system at once, and the system maps and zeroes new ones for each
    operation. On a CPU that often takes longer than the operation.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        # Bytes: the heap serves blocks up to 1 GiB, is never trimmed (the largest int), and grows by 64 MiB at a time.
        for option, value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


def trim_malloc() -> None:
    """Give free memory between used blocks back to the system, where the C library is glibc.

    Otherwise, large freed tensors between small used ones leave ever more gaps that the process still occupies.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@cache  # finding them takes a quarter of a short run
def get_package_versions() -> dict[str, str]:
    """Return the versions of Python and of ``PACKAGES``, by name; "not installed" for a package that is absent."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def get_machine_info() -> dict:
    """Return the properties of the machine and of PyTorch that can change the last bits of a result."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": gpus,
        "cuda": torch.version.cuda if gpus else None,
        "cudnn": torch.backends.cudnn.version() if gpus else None,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul": torch.get_float32_matmul_precision(),
    }


def collect_env_info() -> str:
    """Return the system, processor, accelerators and versions as lines of text."""
    machine = get_machine_info()
    lines = {
        "system": machine["system"],
        "processor": "{processor}, {cores} cores, {threads} threads in use, {instructions}".format(**machine),
        "accelerator": ", ".join(machine["accelerators"]) or "none",
        **get_package_versions(),
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())
