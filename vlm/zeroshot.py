"""Classes described by sentences, as zero-shot CLIP does it (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dassl.utils import UserError

from .class_names import class_names, class_tokens
from .similarity import normalize
from .text_encoder import TextEncoder


def check_template(template: str, name: str) -> None:
    """Raise :class:`UserError` unless the sentence ``template``, which the user knows as ``name``, has a place for the
    class name."""
    if "{}" not in template:
        raise UserError(f'{name} "{template}" has no {{}} for the class name')


@torch.no_grad()
def describe_classes(encoder: TextEncoder, classnames: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """Class features (classes, embed_dim) of length 1: the mean over the templates, averaged as unit vectors.

    Args:
        templates: sentences with ``{}`` for the class name.

    Raises:
        UserError: a name is empty, or a sentence too long; the class is named.
    """
    names = class_names(encoder, classnames)
    device = encoder.token_embedding.weight.device
    features = 0
    for template in templates:
        tokens = class_tokens(encoder, names, template)
        features = features + normalize(encoder.encode(tokens.to(device)))
    return normalize(features)
