"""CLIP's contrastive loss over the pairs of a batch, and large batches in little memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MAX_LOGIT_SCALE = math.log(100)  # as in CLIP: beyond that, training becomes unstable


def contrastive_loss(logits: torch.Tensor, caption_ids: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy (Radford et al. 2021, figure 3) with equal captions as positives of each other.

    Two images with the same caption are no mismatch of each other's; without equal captions, this is CLIP's loss.

    Args:
        logits: (n, n), image against caption.
        caption_ids: (n,), equal where captions are.
    """
    positive = (caption_ids[:, None] == caption_ids).float()
    target = positive / positive.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


def in_chunks(encode: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, chunk: int) -> torch.Tensor:
    """``encode(inputs)`` with gradients, in the memory of ``chunk`` inputs: cached gradients (Gao et al. 2021).

    The features of all inputs are computed first, and nothing is kept for the backward pass. That gives the loss of the
    whole batch its gradients with respect to the features; then each chunk is encoded a second time, with the random
    draws of the first, and its features' gradients go on into the weights. Exact if ``encode`` treats inputs one by
    one, as batch normalisation in training mode does not.

    Args:
        encode: from inputs (m, …) to features (m, dim).
        inputs: (n, …).
        chunk: inputs that are encoded together; below 1: all, once.
    """
    if chunk < 1 or chunk >= len(inputs):
        return encode(inputs)
    return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in inputs.split(chunk)])
