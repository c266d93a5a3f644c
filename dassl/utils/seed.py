"""Seeds and the states of random generators: a draw depends on its purpose, not on the draws before it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

_RNG_LOCK = threading.RLock()  # all threads share the global generators, which temporary_seed changes


def set_random_seed(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_rng_states() -> dict[str, Any]:
    """Return the states of the generators that ``set_random_seed`` seeds, as plain values and tensors."""
    state = np.random.get_state()
    assert isinstance(state, tuple)  # the legacy form, which is the default
    name, keys, *counters = state
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *counters),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_states(states: dict[str, Any]) -> None:
    """Set the generators to what ``get_rng_states`` returned; those of GPUs only if there are as many as then."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():  # a checkpoint may come from a machine with fewer or more
        torch.cuda.set_rng_state_all(states["cuda"])


def derive_seed(*components: object) -> int:
    """Return a 63-bit seed for components such as (seed, epoch, image); it is the same on every machine."""
    text = "\0".join(map(str, components)).encode(errors="surrogatepass")  # names of files need not be Unicode
    digest = blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def temporary_seed(seed: int) -> Iterator[None]:
    """Seed Python's and PyTorch's CPU generators for the body of a ``with``, and restore their states afterwards.

    torchvision's transforms and ``random.sample`` draw from these two. NumPy's generator is left alone, as restoring it
    takes ten times as long. All threads share the generators, so one thread at a time runs such a body.
    """
    with _RNG_LOCK:
        states = random.getstate(), torch.get_rng_state()
        random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            torch.set_rng_state(states[1])
