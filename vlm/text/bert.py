"""The text encoder of Chinese-CLIP: a BERT, in which every token sees all others of its text.

So nothing of a prompt is common to others, and only what follows the end of a text is not computed. The feature is
taken at the first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dassl.utils import UserError
from vlm.text.encoder import ACTIVATION_BYTES, CHECKPOINT_OPTIONS

BATCH_PROMPTS = 128  # computed together


@dataclass(frozen=True)
class PaddedPrompts:
    """Prompts as rows of a table of vectors, and their lengths."""

    index: torch.Tensor  # (prompts, length): rows of the table; those behind the end of a text are ignored
    lengths: torch.Tensor  # (prompts)


class BertEncoder(nn.Module):
    """As :class:`vlm.text.encoder.TextEncoder`, over ``clip.text_model`` with the words of ``clip.tokenizer``."""

    layout = PaddedPrompts

    def __init__(self, clip: nn.Module, memory: int = ACTIVATION_BYTES):
        super().__init__()
        self.text_model, self.text_projection, self.tokenizer = clip.text_model, clip.text_projection, clip.tokenizer
        self.token_embedding = self.text_model.embeddings.word_embeddings
        self.dtype, self.embed_dim = clip.dtype, self.text_projection.out_features
        self.memory = memory

    def tokenize(self, texts: Sequence[str], cut: bool = False) -> torch.Tensor:
        """Token ids, int64 of shape (len(texts), length of the longest): start, words, end, padding.

        Raises:
            UserError: a text has more tokens than there are positions, and is not to be ``cut``; it is named.
        """
        limit = self.text_model.config.max_position_embeddings
        longest = max(texts, key=self.count_tokens)
        if (count := self.count_tokens(longest) + 2) > limit and not cut:
            raise UserError(f'the prompt "{longest[:100]}" has {count} tokens with start and end, of {limit} at most')
        settings = {"padding": True, "truncation": True, "max_length": limit, "return_tensors": "pt"}
        return self.tokenizer(list(texts), **settings)["input_ids"]

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        return (tokens != self.tokenizer.pad_token_id).sum(-1)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.token_embedding(tokens).type(self.dtype)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        return self(self.token_embedding.weight, self.layout(tokens, self.lengths(tokens)))

    def forward(self, table: torch.Tensor, layout: PaddedPrompts) -> torch.Tensor:
        """Features (prompts, embed_dim), not normalised; activations that do not fit into ``memory`` are computed
        again."""
        config, outputs, kept = self.text_model.config, [], 0
        # Kept for the backward pass, about: 16 vectors a token and layer.
        bytes_per_token = 16 * config.num_hidden_layers * config.hidden_size * self.dtype.itemsize
        for index, lengths in zip(layout.index.split(BATCH_PROMPTS), layout.lengths.split(BATCH_PROMPTS), strict=True):
            kept += bytes_per_token * index.numel()
            if outputs and kept > self.memory and torch.is_grad_enabled():
                outputs.append(checkpoint(self._encode, table, index, lengths, **CHECKPOINT_OPTIONS))
            else:
                outputs.append(self._encode(table, index, lengths))
        return torch.cat(outputs)

    def encode_contexts(self, contexts: torch.Tensor, fixed: torch.Tensor, layout: PaddedPrompts) -> torch.Tensor:
        """Features (m, prompts, embed_dim) with each of m contexts (m, n_ctx, width), the first rows of the table."""
        count, n_ctx = contexts.shape[:2]
        step, index = n_ctx * torch.arange(count, device=contexts.device)[:, None, None], layout.index
        index = torch.where(index < n_ctx, index + step, index + n_ctx * (count - 1)).flatten(0, 1)
        features = self(torch.cat([contexts.flatten(0, 1), fixed]), PaddedPrompts(index, layout.lengths.repeat(count)))
        return features.unflatten(0, (count, -1))

    def _encode(self, table: torch.Tensor, index: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        index = index[:, : int(lengths.max())]
        seen = torch.arange(index.shape[1], device=index.device) < lengths[:, None]
        states = self.text_model(inputs_embeds=F.embedding(index, table), attention_mask=seen.long())
        return self.text_projection(states.last_hidden_state[:, 0])
