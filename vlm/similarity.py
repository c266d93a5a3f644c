"""CLIP's logits of images and texts: the cosine of their features, times the logit scale."""

from __future__ import annotations

import torch


def normalize(features: torch.Tensor) -> torch.Tensor:
    """Return features (n, embed_dim), scaled to L2 norm 1; bfloat16, which is too coarse for cosines, becomes fp32."""
    features = features.float() if features.dtype == torch.bfloat16 else features
    return features / features.norm(dim=-1, keepdim=True)


def compute_logits(
    image_features: torch.Tensor, class_features: torch.Tensor, logit_scale: torch.Tensor
) -> torch.Tensor:
    """Return logits (images, classes): the cosines, times ``logit_scale.exp()``.

    Args:
        image_features: (images, embed_dim), of any length.
        class_features: (classes, embed_dim), of length 1.
        logit_scale: the logarithm of the scale, as CLIP learns it.
    """
    return logit_scale.exp() * normalize(image_features.to(class_features.dtype)) @ class_features.t()


def build_linear_head(class_features: torch.Tensor, logit_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight (classes, embed_dim) and bias (classes,) of a linear layer that equals ``compute_logits``.

    The layer takes image features of length 1. The bias is zero. The arguments are those of ``compute_logits``.
    """
    weight = logit_scale.exp() * class_features
    return weight, weight.new_zeros(len(weight))
