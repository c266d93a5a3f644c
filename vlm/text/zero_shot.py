"""Zero-shot classifiers from prompt templates (Radford et al. 2021, section 3.1), or from sentences for each class."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dassl.utils import UserError
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


@torch.no_grad()
def build_description_classifier(
    encoder: TextEncoder, descriptions: Sequence[Sequence[str]], store: FeatureStore | None = None
) -> torch.Tensor:
    """Return class features (classes, embed_dim) of length 1: the normalised mean of its sentences' unit features.

    Of a sentence that is too long for CLIP, the beginning counts; a note names the first one.

    Args:
        descriptions: the sentences of each class, in label order; at least one for each.
        store: feature store of this ``encoder``, or None to cache nothing.
    """
    sentences = [sentence for sentences in descriptions for sentence in sentences]
    try:
        tokens = encoder.tokenize(sentences)
    except UserError as error:
        print(f"Note: CLIP reads only the beginning of some descriptions: {error}")
        tokens = encoder.tokenize(sentences, truncate=True)
    tokens = tokens.to(encoder.token_embedding.weight.device)
    encoded = encode_classes(len(sentences), lambda rows: [tokens[rows]], encoder.encode, store, ", descriptions")
    by_class = normalize(encoded).split([len(sentences) for sentences in descriptions])
    return normalize(torch.stack([features.mean(0) for features in by_class]))
