"""CLIP's text encoder by definition: read this first. :mod:`vlm.text.encoder` gives the same in far less time."""

from __future__ import annotations

import torch

from vlm.openai import CLIP


def encode_prompts(clip: CLIP, prompts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Return features (n, embed_dim), not normalised, of prompts (n, 77, width) in the space of token embeddings.

    Args:
        ends: (n,), the position of each prompt's end-of-text token.
    """
    x = prompts + clip.positional_embedding
    x = clip.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)  # causal: a token sees those before it alone
    x = clip.ln_final(x)[torch.arange(len(x)), ends]  # what the end-of-text token has seen is the whole text
    return x @ clip.text_projection
