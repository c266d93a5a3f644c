"""The text encoder of Chinese-CLIP: a BERT, whose attention is bidirectional.

So a shared prefix has other states in every prompt and cannot be computed once. The feature is read at the first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from dassl.utils import UserError
from vlm.text.encoder import ACTIVATION_BYTES, call_with_recomputation

BATCH_PROMPTS = 128  # prompts of one pass: enough for matrix products at full speed, few enough for little memory


@dataclass(frozen=True)
class PaddedPrompts:
    """Prompts as rows of a table of vectors, padded to one length."""

    index: torch.Tensor  # (prompts, length): rows of the table; entries behind the end of a prompt are ignored
    lengths: torch.Tensor  # (prompts,): tokens, with start and end


class BertEncoder(nn.Module):
    """Chinese-CLIP's text encoder, with the methods of ``vlm.text.encoder.TextEncoder``."""

    language = "Chinese"  # of the texts that Chinese-CLIP learned from
    build_layout = PaddedPrompts

    def __init__(self, clip, memory: int = ACTIVATION_BYTES):
        """Use the modules of ``clip``, a ChineseCLIP; ``memory``: bytes of activations stored for the backward pass."""
        super().__init__()
        self.text_model, self.text_projection, self.tokenizer = clip.text_model, clip.text_projection, clip.tokenizer
        self.token_embedding = self.text_model.embeddings.word_embeddings
        self.dtype, self.embed_dim = clip.dtype, self.text_projection.out_features
        self.context_length = self.text_model.config.max_position_embeddings  # tokens of a text, with start and end
        self.memory = memory

    def tokenize(self, texts: Sequence[str], truncate: bool = False) -> torch.Tensor:
        """Return token ids of texts, int64 of shape (len(texts), length of the longest): start, words, end, padding.

        Raises:
            UserError: a text has more tokens than the model has positions, and ``truncate`` is False.
        """
        limit = self.context_length
        longest = max(texts, key=self.count_tokens)
        if (count := self.count_tokens(longest) + 2) > limit and not truncate:
            raise UserError(f'the prompt "{longest[:100]}" has {count} tokens with start and end, of {limit} at most')
        options = {"padding": True, "truncation": True, "max_length": limit, "return_tensors": "pt"}
        return self.tokenizer(list(texts), **options)["input_ids"]

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text, without start and end."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the number of tokens (n,) of each text in ``tokens`` (n, length), start and end included."""
        return (tokens != self.tokenizer.pad_token_id).sum(-1)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the word embeddings (n, length, width), without positions, of token ids (n, length)."""
        return self.token_embedding(tokens).type(self.dtype)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return features (n, embed_dim), not normalised, of token ids (n, length)."""
        return self(self.token_embedding.weight, self.build_layout(tokens, self.lengths(tokens)))

    def forward(self, table: torch.Tensor, layout: PaddedPrompts) -> torch.Tensor:
        """Return features (prompts, embed_dim), not normalised, of ``layout``, with vectors from ``table``."""
        config, activation_bytes = self.text_model.config, 0
        outputs: list[torch.Tensor] = []
        # The backward pass needs about 16 vectors for each token and layer. Beyond ``memory``, it computes them again.
        bytes_per_token = 16 * config.num_hidden_layers * config.hidden_size * self.dtype.itemsize
        for index, lengths in zip(layout.index.split(BATCH_PROMPTS), layout.lengths.split(BATCH_PROMPTS), strict=True):
            activation_bytes += bytes_per_token * index.numel()
            if outputs and activation_bytes > self.memory and torch.is_grad_enabled():
                outputs.append(call_with_recomputation(self._encode, table, index, lengths))
            else:
                outputs.append(self._encode(table, index, lengths))
        return torch.cat(outputs)

    def encode_contexts(
        self, contexts: torch.Tensor, fixed_embeddings: torch.Tensor, layout: PaddedPrompts
    ) -> torch.Tensor:
        """Return features (m, prompts, embed_dim), not normalised, of ``layout``'s prompts under each of m contexts.

        ``contexts`` (m, n_ctx, width) are the first rows of the table for each context, ``fixed_embeddings`` the rest.
        """
        count, n_ctx = contexts.shape[:2]
        offsets, index = n_ctx * torch.arange(count, device=contexts.device)[:, None, None], layout.index
        index = torch.where(index < n_ctx, index + offsets, index + n_ctx * (count - 1)).flatten(0, 1)
        features = self(
            torch.cat([contexts.flatten(0, 1), fixed_embeddings]), PaddedPrompts(index, layout.lengths.repeat(count))
        )
        return features.unflatten(0, (count, -1))

    def _encode(self, table: torch.Tensor, index: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return features (n, embed_dim) of a batch of prompts as in ``PaddedPrompts``, cut to the longest."""
        index = index[:, : int(lengths.max())]
        attention_mask = torch.arange(index.shape[1], device=index.device) < lengths[:, None]
        states = self.text_model(inputs_embeds=F.embedding(index, table), attention_mask=attention_mask.long())
        return self.text_projection(states.last_hidden_state[:, 0])
