"""CLIP's text encoder by definition: read this first. ``vlm.text.encoder`` computes the same in far less time."""

from __future__ import annotations

import torch

from vlm.openai import CLIP


def encode_prompts(clip: CLIP, prompts: torch.Tensor, eot_positions: torch.Tensor) -> torch.Tensor:
    """Return text features (n, embed_dim), not normalised, of prompts (n, 77, width).

    Args:
        prompts: token embeddings, without positional embeddings.
        eot_positions: (n,), the position of each prompt's end-of-text (EOT) token.
    """
    x = prompts + clip.positional_embedding.type(clip.dtype)
    x = clip.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)  # causal: a token attends to no later token
    x = clip.ln_final(x)[torch.arange(len(x)), eot_positions]  # the EOT token has attended to the whole text
    return x @ clip.text_projection
