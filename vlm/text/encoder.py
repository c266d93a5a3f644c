"""CLIP's text encoder for many prompts: the features and gradients of ``vlm.text.plain``, to rounding, in less time.

Nothing is approximated. Prompts are packed as ``vlm.text.layout`` describes: without padding, without the tokens
behind the end-of-text (EOT) token, and with the common prefix once, to whose keys and values all prompts attend. The
last layer computes only the EOT tokens, at which the feature is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dassl.utils import trim_malloc
from vlm.openai import CLIP
from vlm.text.layers import PrefixAttention, mlp
from vlm.text.layout import CHUNK_TOKENS, Chunk, Layout
from vlm.text.tokenizer import count_tokens, tokenize

# Bytes of activations stored for the backward pass, which computes any others again: enough for RN50 and 1,000 classes.
ACTIVATION_BYTES = 1_200_000_000
# Tokens of the prompts under one context. Matrix products of more rows gain nothing from batching several contexts.
MAX_BATCHED_TOKENS = 256
# Calls a function whose activations the backward pass computes again. The random state is not saved, since the text
# encoder draws no random numbers.
call_with_recomputation = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


class TextEncoder(nn.Module):
    """CLIP's text encoder, over prompts given as rows of a table of vectors.

    The table is an argument of ``forward``, so a method can learn some of its rows, such as context tokens.
    """

    language = "English"  # of the texts that CLIP learned from
    count_tokens = staticmethod(count_tokens)
    build_layout = staticmethod(Layout.build)  # (index, lengths) -> the packed prompts that ``forward`` takes

    def __init__(self, clip_model: CLIP, memory: int = ACTIVATION_BYTES):
        """Use the modules of ``clip_model``; store up to ``memory`` bytes of activations for the backward pass."""
        super().__init__()
        self.token_embedding = clip_model.token_embedding
        self.positional_embedding = clip_model.positional_embedding
        self.transformer = clip_model.transformer
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.dtype, self.embed_dim = clip_model.dtype, self.text_projection.shape[1]
        self.context_length = len(self.positional_embedding)  # tokens of a text, with start and end
        self.memory = memory
        # The backward pass needs about 11 vectors for each token and layer.
        vector_bytes = self.positional_embedding.shape[1] * self.dtype.itemsize
        self.bytes_per_token = 11 * len(self.transformer.resblocks) * vector_bytes

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the word embeddings (n, length, width), without positions, of token ids (n, length)."""
        return self.token_embedding(tokens).type(self.dtype)

    def tokenize(self, texts: Sequence[str], truncate: bool = False) -> torch.Tensor:
        """Return token ids (n, 77) of texts, as ``vlm.text.tokenizer.tokenize``."""
        return tokenize(texts, self.context_length, truncate)

    @staticmethod
    def lengths(tokens: torch.Tensor) -> torch.Tensor:
        """Return the number of tokens (n,) of each text in ``tokens`` (n, 77), its start and EOT token included."""
        return tokens.argmax(dim=-1) + 1  # the EOT token has the highest id

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return features (n, embed_dim), not normalised, of token ids (n, 77)."""
        return self(self.token_embedding.weight, self.build_layout(tokens, self.lengths(tokens)))

    def forward(self, table: torch.Tensor, layout: Layout, deep_prompts: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """Return features (n, embed_dim), not normalised, of the n prompts of ``layout``, in their order.

        Chunks are computed one after another. The first ones, as many as fit into ``memory``, store their
        activations for the backward pass. The backward pass computes the activations of the others again, bit for bit.

        Args:
            table: vectors (rows, width) that ``layout.index`` refers to, without positional embeddings.
            layout: the packed prompts, from ``build_layout(index, lengths)``.
            deep_prompts: each (n_ctx, width); the l-th, from 1, replaces the states of the n_ctx tokens behind the
                start token before layer l, counted from 0. These tokens must be in the prefix, which all prompts share.
        """
        assert not deep_prompts or layout.prefix_length > len(deep_prompts[0])
        x = F.embedding(layout.index, table).type(self.dtype)
        x = x + self.positional_embedding[layout.position_ids].type(self.dtype)
        first, *later = x.split([chunk.num_tokens for chunk in layout.chunks])
        features, prefix_key_values = self._encode(first, layout.chunks[0], layout.prefix_length, None, deep_prompts)
        outputs, activation_bytes = [features], self.bytes_per_token * len(first)
        for x, chunk in zip(later, layout.chunks[1:], strict=True):
            activation_bytes += self.bytes_per_token * len(x)
            inputs = x, chunk, layout.prefix_length, prefix_key_values
            if activation_bytes <= self.memory or not torch.is_grad_enabled():
                features, _ = self._encode(*inputs)
            else:
                features = call_with_recomputation(self._encode_later_chunk, *inputs)
            outputs.append(features)
        return torch.cat(outputs)[layout.unsort]

    def encode_contexts(self, contexts: torch.Tensor, fixed_embeddings: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return features (m, n, embed_dim), not normalised, of the n prompts of ``layout`` under each of m contexts.

        Short prompts are computed for several contexts at once, as many as fit into a chunk. As in ``forward``,
        activations beyond ``memory`` are computed again in the backward pass.

        Args:
            contexts: (m, n_ctx, width); for each context, the first n_ctx rows of the table of vectors.
            fixed_embeddings: (rows, width), the other rows of the table, which all contexts share.
        """
        count, n_ctx = contexts.shape[:2]
        tokens = layout.prefix_length + sum(layout.suffix_lengths)
        batch_size = min(count, CHUNK_TOKENS // tokens) if tokens <= MAX_BATCHED_TOKENS else 1
        outputs: list[torch.Tensor] = []
        activation_bytes = 0
        for batch in contexts.split(max(batch_size, 1)):
            batch_layout = layout.repeat(len(batch), n_ctx) if len(batch) > 1 else layout
            table = torch.cat([batch.flatten(0, 1), fixed_embeddings])
            activation_bytes += self.bytes_per_token * len(batch_layout.index)
            if outputs and activation_bytes > self.memory and torch.is_grad_enabled():
                outputs.append(call_with_recomputation(self, table, batch_layout))
            else:
                outputs.append(self(table, batch_layout))
        return torch.cat(outputs).unflatten(0, (count, -1))

    def _encode_later_chunk(
        self, x: torch.Tensor, chunk: Chunk, prefix_length: int, prefix_key_values: list[torch.Tensor]
    ) -> torch.Tensor:
        """Call ``trim_malloc``; return the features (prompts, embed_dim) of a chunk other than the first.

        Arguments as in ``_encode``; ``x`` has no rows of the prefix.
        """
        trim_malloc()
        return self._encode(x, chunk, prefix_length, prefix_key_values)[0]

    def _encode(
        self, x: torch.Tensor, chunk: Chunk, prefix_length: int, prefix_key_values: list | None = None, deep_prompts=()
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the features (prompts, embed_dim) of a chunk, and the keys and values of the prefix in each layer.

        Args:
            x: (rows, width), the states of the chunk's tokens before the first layer.
            prefix_key_values: for each layer, (prefix_length, 2 * width). None: ``x`` begins with the prefix's rows.
            deep_prompts: as in ``forward``; other chunks than the first see them through ``prefix_key_values``.
        """
        key_values = []
        for number, block in enumerate(self.transformer.resblocks):
            if 1 <= number <= len(deep_prompts):
                prompt = deep_prompts[number - 1].to(x.dtype)
                x = torch.cat([x[:1], prompt, x[1 + len(prompt) :]])
            is_last = number == len(self.transformer.resblocks) - 1
            width, attn, y = x.shape[1], block.attn, block.ln_1(x)
            key_value = F.linear(y, attn.in_proj_weight[width:], attn.in_proj_bias[width:])
            if is_last:
                x, y = x.index_select(0, chunk.eot_rows), y.index_select(0, chunk.eot_rows)
            query = F.linear(y, attn.in_proj_weight[:width], attn.in_proj_bias[:width])
            cached = prefix_key_values[number] if prefix_key_values else None
            key_values.append(key_value[:prefix_length] if cached is None else cached)
            groups = chunk.eot_groups if is_last else chunk.groups
            heads = PrefixAttention.apply(query, key_value, cached, prefix_length, groups, attn.num_heads)
            x = x + F.linear(heads, attn.out_proj.weight, attn.out_proj.bias)
            x = x + mlp(block.mlp, block.ln_2(x))
        return self.ln_final(x).type(self.dtype) @ self.text_projection, key_values


def get_language(clip: CLIP) -> str:
    """Return the language of the texts that a CLIP learned from: English or Chinese."""
    return getattr(clip, "text_encoder", TextEncoder).language


def build_text_encoder(clip: CLIP, memory: int = ACTIVATION_BYTES) -> TextEncoder:
    """Return the text encoder of a CLIP (Chinese-CLIP: a BertEncoder); it stores up to ``memory`` activation bytes."""
    return getattr(clip, "text_encoder", TextEncoder)(clip, memory=memory)
