"""CLIP's score of an image and a text: the cosine of their features, times the logit scale."""

from __future__ import annotations

import torch


def normalize(features: torch.Tensor) -> torch.Tensor:
    """Features (n, embed_dim) brought to length 1; those in bfloat16, too coarse for cosines, in fp32."""
    features = features.float() if features.dtype == torch.bfloat16 else features
    return features / features.norm(dim=-1, keepdim=True)


def compute_logits(
    image_features: torch.Tensor, class_features: torch.Tensor, logit_scale: torch.Tensor
) -> torch.Tensor:
    """Logits (images, classes).

    Args:
        image_features: (images, embed_dim), of any length.
        class_features: (classes, embed_dim), of length 1.
        logit_scale: the logarithm of the scale, as CLIP learns it.
    """
    return logit_scale.exp() * normalize(image_features.to(class_features.dtype)) @ class_features.t()


def build_linear_head(class_features: torch.Tensor, logit_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as a linear layer on image features of length 1: weight (classes, embed_dim) and bias (classes,)."""
    weight = logit_scale.exp() * class_features
    return weight, weight.new_zeros(len(weight))
