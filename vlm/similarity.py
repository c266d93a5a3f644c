"""CLIP's score of an image and a text: the cosine of their features, times the logit scale."""

from __future__ import annotations

from typing import NamedTuple

import torch


def normalize(features: torch.Tensor) -> torch.Tensor:
    """Features (n, embed_dim) brought to length 1; those in bfloat16, too coarse for cosines, in fp32."""
    features = features.float() if features.dtype == torch.bfloat16 else features
    return features / features.norm(dim=-1, keepdim=True)


def logits(image_features: torch.Tensor, class_features: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Logits (images, classes).

    Args:
        image_features: (images, embed_dim), of any length.
        class_features: (classes, embed_dim), of length 1.
        logit_scale: the logarithm of the scale, as CLIP learns it.
    """
    return logit_scale.exp() * normalize(image_features.to(class_features.dtype)) @ class_features.t()


class Best(NamedTuple):
    """The best logit of each image and its class, in place of all logits."""

    scores: torch.Tensor  # (images,); not a number if one of the logits is not
    labels: torch.Tensor  # (images,), int64; of equal logits the first, as ``argmax`` has it


def best(image_features: torch.Tensor, class_features: torch.Tensor, logit_scale: torch.Tensor, columns: int) -> Best:
    """The best of :func:`logits`, computed in blocks of ``columns`` classes."""
    found = None
    for start in range(0, len(class_features), columns):
        part = class_features[start : start + columns]
        scores, labels = logits(image_features, part, logit_scale).max(dim=1)
        if found is None:
            found = Best(scores, labels)
            continue
        better = (scores > found.scores) | scores.isnan()
        labels = torch.where(better, labels + start, found.labels)
        found = Best(torch.where(better, scores, found.scores), labels)
    return found


def logits_or_best(
    image_features: torch.Tensor, class_features: torch.Tensor, logit_scale: torch.Tensor, most: float
) -> torch.Tensor | Best:
    """:func:`logits` where they take no more than ``most`` bytes; else :func:`best` in blocks of no more than that."""
    columns = int(most / (max(len(image_features), 1) * class_features.element_size()))
    if columns >= len(class_features):
        return logits(image_features, class_features, logit_scale)
    return best(image_features, class_features, logit_scale, max(columns, 1))


def linear_head(class_features: torch.Tensor, logit_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as a linear layer on image features of length 1: weight (classes, embed_dim) and bias (classes,)."""
    weight = logit_scale.exp() * class_features
    return weight, weight.new_zeros(len(weight))
