"""CLIP's text encoder, which computes each state once.

As :mod:`vlm.text.layout` has it: nothing behind the end of a text, and the common beginning of all prompts once, its
keys and values attended to by all of them. In the last layer only the end-of-text positions are finished, as the
feature is taken there. The tokens lie end to end in one matrix, so short prompts do not pay for long ones. All this is
exact: features and gradients are those of the plain encoder over 77 positions, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dassl.utils import trim_malloc
from vlm.openai import CLIP
from vlm.text.layers import PrefixAttention, mlp
from vlm.text.layout import CHUNK_TOKENS, Chunk, Layout
from vlm.text.tokenizer import count_tokens, tokenize

ACTIVATION_BYTES = (
    1_200_000_000  # bytes of activations kept for the backward pass; what exceeds them is computed a second time
)
MAX_BATCHED_TOKENS = 256  # tokens: prompts of more gain nothing from being computed with those of other contexts
CHECKPOINT_OPTIONS = {
    "use_reentrant": False,
    "preserve_rng_state": False,
}  # of torch's checkpoint; nothing here is random


class TextEncoder(nn.Module):
    """Encodes prompts whose tokens are rows of a table of vectors, some of which may be learned.

    It knows how its CLIP reads words: ``tokenize`` makes token ids (n, 77) of texts, ``count_tokens`` counts those of a
    text without its start and end, ``lengths`` those of token ids with both.
    """

    count_tokens = staticmethod(count_tokens)
    layout = staticmethod(Layout.of)  # what is to be computed of prompts

    def __init__(self, clip_model: CLIP, memory: int = ACTIVATION_BYTES):
        super().__init__()
        self.token_embedding = clip_model.token_embedding
        self.positional_embedding = clip_model.positional_embedding
        self.transformer = clip_model.transformer
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.dtype, self.embed_dim = clip_model.dtype, self.text_projection.shape[1]
        self.memory = memory
        # Kept for the backward pass, about: 11 vectors a token and layer.
        vector = self.positional_embedding.shape[1] * self.dtype.itemsize
        self.bytes_per_token = 11 * len(self.transformer.resblocks) * vector

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (n, length) -> embeddings (n, length, width)."""
        return self.token_embedding(tokens).type(self.dtype)

    def tokenize(self, texts: Sequence[str], cut: bool = False) -> torch.Tensor:
        """See :func:`vlm.text.tokenizer.tokenize`."""
        return tokenize(texts, len(self.positional_embedding), cut)

    @staticmethod
    def lengths(tokens: torch.Tensor) -> torch.Tensor:
        """Tokens of each text up to its end-of-text token, which has the highest id: (n, 77) -> (n,)."""
        return tokens.argmax(dim=-1) + 1

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (n, 77) -> features (n, embed_dim), not normalised."""
        return self(self.token_embedding.weight, self.layout(tokens, self.lengths(tokens)))

    def forward(self, table: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Features (n, embed_dim), not normalised, of the n prompts of ``layout``, in their order.

        The chunks of the layout are computed one after another. For the backward pass, the activations of as many as
        fit into ``memory`` are kept; those of the others are computed again, with the same result.

        Args:
            table: vectors (rows, width), to which the layout's index refers; positions are not yet added.
        """
        x = F.embedding(layout.index, table).type(self.dtype)
        x = x + self.positional_embedding[layout.position].type(self.dtype)
        first, *others = x.split([chunk.rows for chunk in layout.chunks])
        features, shared = self._encode(first, layout.chunks[0], layout.prefix)
        outputs, kept = [features], self.bytes_per_token * len(first)
        for x, chunk in zip(others, layout.chunks[1:], strict=True):
            kept += self.bytes_per_token * len(x)
            if kept <= self.memory or not torch.is_grad_enabled():
                features, _ = self._encode(x, chunk, layout.prefix, shared)
            else:
                features = checkpoint(self._recompute_chunk, x, chunk, layout.prefix, shared, **CHECKPOINT_OPTIONS)
            outputs.append(features)
        return torch.cat(outputs)[layout.place]

    def encode_contexts(self, contexts: torch.Tensor, fixed: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Features (m, n, embed_dim) of the n prompts of ``layout`` with each of m contexts.

        As many contexts are computed together as make a chunk; of many prompts, one after another. As in
        :meth:`forward`, activations that do not fit into ``memory`` are computed again.

        Args:
            contexts: (m, n_ctx, width), the first rows of the table of vectors each.
            fixed: (rows, width), the others.
        """
        count, n_ctx = contexts.shape[:2]
        tokens = layout.prefix + sum(layout.tails)
        together = min(count, CHUNK_TOKENS // tokens) if tokens <= MAX_BATCHED_TOKENS else 1
        outputs, kept = [], 0
        for part in contexts.split(max(together, 1)):
            wide = layout.repeated(len(part), n_ctx) if len(part) > 1 else layout
            table = torch.cat([part.flatten(0, 1), fixed])
            kept += self.bytes_per_token * len(wide.index)
            if outputs and kept > self.memory and torch.is_grad_enabled():
                outputs.append(checkpoint(self, table, wide, **CHECKPOINT_OPTIONS))
            else:
                outputs.append(self(table, wide))
        return torch.cat(outputs).unflatten(0, (count, -1))

    def _recompute_chunk(self, x: torch.Tensor, chunk: Chunk, prefix: int, shared: list[torch.Tensor]) -> torch.Tensor:
        """Features of a chunk, for ``checkpoint`` to call again in the backward pass."""
        trim_malloc()
        return self._encode(x, chunk, prefix, shared)[0]

    def _encode(
        self, x: torch.Tensor, chunk: Chunk, prefix: int, shared: list[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Features of a chunk of states ``x`` (rows, width), and the prefix's keys and values in each layer.

        Where the latter are not given (``shared``), the states of the prefix are the first rows of ``x``.
        """
        found = []
        for number, block in enumerate(self.transformer.resblocks):
            last = number == len(self.transformer.resblocks) - 1
            width, attn, y = x.shape[1], block.attn, block.ln_1(x)
            key_value = F.linear(y, attn.in_proj_weight[width:], attn.in_proj_bias[width:])
            if last:
                x, y = x.index_select(0, chunk.ends), y.index_select(0, chunk.ends)
            query = F.linear(y, attn.in_proj_weight[:width], attn.in_proj_bias[:width])
            found.append(shared[number] if shared else key_value[:prefix])
            groups = chunk.eot_groups if last else chunk.groups
            heads = PrefixAttention.apply(query, key_value, shared and shared[number], prefix, groups, attn.num_heads)
            x = x + F.linear(heads, attn.out_proj.weight, attn.out_proj.bias)
            x = x + mlp(block.mlp, block.ln_2(x))
        return self.ln_final(x).type(self.dtype) @ self.text_projection, found


def build_text_encoder(clip: CLIP, memory: int = ACTIVATION_BYTES) -> nn.Module:
    """The text encoder of a CLIP that :func:`vlm.clip.load.load_clip` gave."""
    return getattr(clip, "text_encoder", TextEncoder)(clip, memory=memory)
