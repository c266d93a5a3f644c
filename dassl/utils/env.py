"""What a run ran on, for its log and its record."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from importlib.metadata import PackageNotFoundError, version

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # as in malloc.h
PACKAGES = (
    *("torch", "torchvision", "openai-clip", "numpy", "pillow", "scikit-learn", "scipy", "yacs", "openvino"),
    *("ftfy", "regex", "open_clip_torch", "timm", "transformers", "tokenizers"),
)


def tune_malloc() -> None:
    """Keep the pages of freed tensors for the next ones, where the C library is glibc.

    By default it gives large blocks back to the system at once, which maps and zeroes them anew for each operation:
    on a CPU, often more work than the operation itself.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


def trim_malloc() -> None:
    """Give the holes between small blocks back to the system, where the C library is glibc: large tensors that come and
    go beside small ones that stay would otherwise leave more and more of them."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def get_package_versions() -> dict[str, str]:
    """Versions of Python and of the packages whose versions can change a result."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def get_machine_info() -> dict:
    """What of a machine, and of how PyTorch uses it, can change the last bits of a result."""
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
    """A few lines of text: system, processor, accelerator, versions."""
    has = get_machine_info()
    lines = {
        "system": has["system"],
        "processor": f"{has['processor']}, {has['cores']} cores, {has['threads']} threads in use, "
        f"{has['instructions']}",
        "accelerator": ", ".join(has["accelerators"]) or "none",
        **get_package_versions(),
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())
