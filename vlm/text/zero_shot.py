"""Classes described by sentences, as zero-shot CLIP does it (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlm.images.feature_store import FeatureStore
from vlm.similarity import normalize
from vlm.text.class_features import encode_classes
from vlm.text.classnames import clean_classnames, tokenize_class_prompts
from vlm.text.encoder import TextEncoder


@torch.no_grad()
def build_zero_shot_classifier(
    encoder: TextEncoder, classnames: Sequence[str], templates: Sequence[str], store: FeatureStore | None = None
) -> torch.Tensor:
    """Class features (classes, embed_dim) of length 1: the mean over the templates, averaged as unit vectors.

    Args:
        templates: sentences with ``{}`` for the class name.
        store: keeps the sentences' features; it must be of this ``encoder``.

    Raises:
        UserError: a name is empty, or a sentence too long.
    """
    names = clean_classnames(encoder, classnames)
    device = encoder.token_embedding.weight.device
    features = 0
    for number, template in enumerate(templates, 1):
        tokens = tokenize_class_prompts(encoder, names, template).to(device)
        of_classes = lambda classes, tokens=tokens: [tokens[classes]]  # noqa: E731
        of_template = f", template {number} of {len(templates)}"
        encoded = encode_classes(len(names), of_classes, encoder.encode, store, of_template)
        features = features + normalize(encoded)
    return normalize(features)
