"""CLIP's contrastive loss over a batch of image-text pairs, for one or several processes, and chunked encoding."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dassl.distributed import all_gather_with_grad, get_world_size

from .similarity import compute_logits

MAX_LOGIT_SCALE = math.log(100)  # logarithm of CLIP's largest scale: beyond it, training becomes unstable


def contrastive_loss(logits: torch.Tensor, caption_ids: torch.Tensor) -> torch.Tensor:
    """Return CLIP's symmetric cross-entropy, a scalar (Radford et al. 2021, figure 3); equal captions are positives.

    Args:
        logits: (n, n), images by captions, scaled; each image's caption is on the diagonal.
        caption_ids: (n,), equal for equal captions.
    """
    return _symmetric_cross_entropy(logits, logits.t(), caption_ids[:, None] == caption_ids)


def _symmetric_cross_entropy(per_image: torch.Tensor, per_text: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Return the mean of two cross-entropies: of n images among m texts, and of n texts among m images.

    Logits and the mask ``positive`` are (n, m). The positives of a row, at least one, are equally probable targets.
    """
    target = positive.float()
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(per_image, target) + F.cross_entropy(per_text, target)) / 2


def distributed_contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, caption_ids: torch.Tensor, logit_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``contrastive_loss`` of features, and bool (n,): whether an image scores highest with its caption.

    In a distributed run, a process gets the loss of its rows against the features of all processes. Features are
    gathered with gradients, so the mean over all rows has the gradients of one process with the whole batch.

    Args:
        images: (n, embed_dim), image features of length 1.
        texts: (n, embed_dim), features of length 1 of each image's caption.
        caption_ids: (n,), equal for equal captions, across all processes. An equal caption counts as the image's.
        logit_scale: the logarithm of the scale, as for ``vlm.similarity.compute_logits``.
    """
    if get_world_size() == 1:
        per_image = compute_logits(images, texts, logit_scale)
        loss, all_ids = contrastive_loss(per_image, caption_ids), caption_ids
    else:
        all_images, all_texts = all_gather_with_grad(torch.cat([images, texts], 1)).chunk(2, dim=1)
        all_ids = all_gather_with_grad(caption_ids)
        per_image = compute_logits(images, all_texts, logit_scale)
        per_text = compute_logits(texts, all_images, logit_scale)
        loss = _symmetric_cross_entropy(per_image, per_text, caption_ids[:, None] == all_ids)
    return loss, all_ids[per_image.argmax(1)] == caption_ids


def encode_in_chunks(encode: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, chunk: int) -> torch.Tensor:
    """Return ``encode(inputs)``, computed ``chunk`` inputs at a time: gradient caching (Gao et al. 2021).

    Only inputs and features are stored. The backward pass encodes each chunk again with the same random draws. This is
    exact if ``encode``, from inputs (m, …) to features (m, embed_dim), treats inputs independently; batch normalisation
    in training mode does not. A ``chunk`` below 1 means all at once, with all activations stored.
    """
    if chunk < 1 or chunk >= len(inputs):
        return encode(inputs)
    return torch.cat([checkpoint(encode, batch, use_reentrant=False) for batch in inputs.split(chunk)])
