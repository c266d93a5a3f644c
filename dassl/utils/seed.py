"""Random numbers that depend on what they are for, not on when they are drawn."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch

_GENERATORS = threading.RLock()


def set_random_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derive_seed(*parts: object) -> int:
    """A 63-bit seed for the given parts, such as (seed, epoch, image): the same on every machine."""
    digest = blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's and PyTorch's CPU generators for the body of a ``with`` and put them back afterwards.

    They are what torchvision's transforms and ``random.sample`` draw from; NumPy's takes ten times as long to put back.
    As all threads share them, one thread at a time is in such a body.
    """
    with _GENERATORS:
        states = random.getstate(), torch.get_rng_state()
        random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            torch.set_rng_state(states[1])
