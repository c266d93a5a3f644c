"""Random numbers that depend on what they are for, not on when they are drawn."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

_RNG_LOCK = threading.RLock()


def set_random_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_rng_states() -> dict[str, Any]:
    """The states of the generators that :func:`set_random_seed` seeds, as plain values and tensors."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_states(states: dict[str, Any]) -> None:
    """Go on drawing where :func:`get_rng_states` was called."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():  # on another machine, there may be others
        torch.cuda.set_rng_state_all(states["cuda"])


def derive_seed(*parts: object) -> int:
    """A 63-bit seed for the given parts, such as (seed, epoch, image): the same on every machine."""
    text = "\0".join(map(str, parts)).encode(errors="surrogatepass")  # names of files need not be Unicode
    digest = blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def temporary_seed(seed: int) -> Iterator[None]:
    """Seed Python's and PyTorch's CPU generators for the body of a ``with`` and put them back afterwards.

    They are what torchvision's transforms and ``random.sample`` draw from; NumPy's takes ten times as long to put back.
    As all threads share them, one thread at a time is in such a body.
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
