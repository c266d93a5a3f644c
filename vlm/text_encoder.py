"""CLIP's text encoder, without the padding.

The text transformer is causal and its feature is taken at the end-of-text token, so nothing behind that token can
reach the feature: prompts are cut after the longest one instead of being padded to 77.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .openai import CLIP


class TextEncoder(nn.Module):
    """Encodes token embeddings (which may be learned) or token ids."""

    def __init__(self, clip_model: CLIP):
        super().__init__()
        self.token_embedding = clip_model.token_embedding
        self.positional_embedding = clip_model.positional_embedding
        self.transformer = clip_model.transformer
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.dtype = clip_model.dtype

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (n, length) -> embeddings (n, length, width)."""
        return self.token_embedding(tokens).type(self.dtype)

    def forward(self, prompts: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Text features.

        Args:
            prompts: embeddings (n, length, width), positions not yet added.
            tokens: their token ids (n, length); they tell where each text ends.

        Returns:
            Features (n, embed_dim), not normalised.
        """
        end = tokens.argmax(dim=-1)  # the end-of-text token has the highest id
        length = int(end.max()) + 1
        x = prompts[:, :length] + self.positional_embedding[:length].type(self.dtype)
        for block in self.transformer.resblocks:
            x = x + _causal_attention(block.attn, block.ln_1(x))
            x = x + block.mlp(block.ln_2(x))
        x = x[torch.arange(len(x), device=x.device), end]
        return self.ln_final(x).type(self.dtype) @ self.text_projection

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (n, 77) -> features (n, embed_dim), not normalised."""
        return self(self.embed(tokens), tokens)


def _causal_attention(attn: nn.MultiheadAttention, x: torch.Tensor) -> torch.Tensor:
    """Self-attention in which each of the positions of ``x`` (n, length, width) sees itself and those before it."""
    n, length, width = x.shape
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).view(n, length, 3, attn.num_heads, attn.head_dim)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    heads = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return attn.out_proj(heads.transpose(1, 2).reshape(n, length, width))
