"""CLIP's contrastive loss over the pairs of a batch, and large batches in little memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dassl.distributed import all_gather_with_grad, get_world_size

from .similarity import compute_logits

MAX_LOGIT_SCALE = math.log(100)  # as in CLIP: beyond that, training becomes unstable


def contrastive_loss(logits: torch.Tensor, caption_ids: torch.Tensor) -> torch.Tensor:
    """Return CLIP's symmetric cross-entropy (Radford et al. 2021, figure 3), with equal captions no mismatches.

    Logits are (n, n), image against caption; ``caption_ids`` (n,) are equal where captions are.
    """
    return _symmetric_cross_entropy(logits, logits.t(), caption_ids[:, None] == caption_ids)


def _symmetric_cross_entropy(per_image: torch.Tensor, per_text: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    target = positive.float()
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(per_image, target) + F.cross_entropy(per_text, target)) / 2


def distributed_contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, caption_ids: torch.Tensor, logit_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`contrastive_loss` of features, and which images score highest with a caption of theirs.

    Of several processes, each gets the mean over its own rows of the whole batch's scores, against all features:
    gathered with gradients, so that the mean over all rows has the gradients of one process with the whole batch.

    Args:
        images: (n, dim), of length 1.
        texts: (n, dim), of length 1: of each image's caption.
        caption_ids: (n,), equal where captions are, in all processes.
        logit_scale: as for :func:`vlm.similarity.compute_logits`.
    """
    if get_world_size() == 1:
        per_image = compute_logits(images, texts, logit_scale)
        loss, every_id = contrastive_loss(per_image, caption_ids), caption_ids
    else:
        every_image, every_text = all_gather_with_grad(torch.cat([images, texts], 1)).chunk(2, dim=1)
        every_id = all_gather_with_grad(caption_ids)
        per_image, per_text = (
            compute_logits(images, every_text, logit_scale),
            compute_logits(texts, every_image, logit_scale),
        )
        loss = _symmetric_cross_entropy(per_image, per_text, caption_ids[:, None] == every_id)
    return loss, every_id[per_image.argmax(1)] == caption_ids


def encode_in_chunks(encode: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, chunk: int) -> torch.Tensor:
    """``encode(inputs)`` with gradients, in the memory of ``chunk`` inputs: cached gradients (Gao et al. 2021).

    Nothing of a chunk but its features is kept for the backward pass, where it is encoded a second time, with the
    random draws of the first. Exact if ``encode``, from inputs (m, …) to features (m, dim), treats inputs one by one,
    as batch normalisation in training mode does not. A ``chunk`` below 1: all at once.
    """
    if chunk < 1 or chunk >= len(inputs):
        return encode(inputs)
    return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in inputs.split(chunk)])
