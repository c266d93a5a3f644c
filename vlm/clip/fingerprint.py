"""Fingerprint of a CLIP's weights, independent of the format of their file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


def weights_fingerprint(state_dict: Mapping[str, torch.Tensor], architecture: str = "") -> str:
    """Return the SHA-256 (hexadecimal) of ``architecture`` and of the sorted keys, each followed by its fp32 values.

    ``architecture``: text on all that the weights do not determine; "" for an OpenAI CLIP.
    """
    digest = hashlib.sha256(architecture.encode())
    for key in sorted(state_dict):
        digest.update(key.encode())
        digest.update(state_dict[key].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
