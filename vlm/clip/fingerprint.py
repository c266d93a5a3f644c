"""A checksum of weights: the same for the same numbers, whatever file they came in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


def fingerprint(state_dict: Mapping[str, torch.Tensor], architecture: str = "") -> str:
    """SHA-256 (hexadecimal) over ``architecture``, where the weights do not tell it, and the keys in sorted order, each
    followed by its values as fp32 bytes."""
    digest = hashlib.sha256(architecture.encode())
    for key in sorted(state_dict):
        digest.update(key.encode())
        digest.update(state_dict[key].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
