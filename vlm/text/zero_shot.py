"""Zero-shot classifiers from prompt templates (Radford et al. 2021, section 3.1)."""

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
    """Return class features (classes, embed_dim) of length 1: the normalised mean of the templates' unit features.

    Args:
        classnames: class names in label order.
        templates: prompts with ``{}`` for the class name.
        store: feature store of this ``encoder``, or None to cache nothing.

    Raises:
        UserError: a class name has no tokens, or a prompt is too long.
    """
    names = clean_classnames(encoder, classnames)
    device = encoder.token_embedding.weight.device
    features = torch.tensor(0)
    for number, template in enumerate(templates, 1):
        tokens = tokenize_class_prompts(encoder, names, template).to(device)
        select_tokens = lambda labels, tokens=tokens: [tokens[labels]]  # noqa: E731
        title = f", template {number} of {len(templates)}"
        encoded = encode_classes(len(names), select_tokens, encoder.encode, store, title)
        features = features + normalize(encoded)
    return normalize(features)
