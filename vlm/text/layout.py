"""Packing of prompts: which tokens the text encoder computes, and in which order.

The text transformer is causal: the state of a token depends only on the token itself and on earlier ones. So the prefix
that all prompts share is computed once, and tokens behind a prompt's end-of-text (EOT) token are not computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

# Tokens of a chunk: enough for matrix products at full speed, few enough for their results to stay in the CPU's cache.
CHUNK_TOKENS = 1024
# Tokens of an attention group. Larger groups compute more attention scores between different prompts, all masked.
GROUP_TOKENS = 64
# Tokens of a layout. MKL takes longer for a matrix product of fewer than 64 rows than for one of 64.
MIN_ROWS = 64


@dataclass(frozen=True)
class AttentionGroup:
    """Neighbouring prompts of a chunk, whose attention is computed in one matrix product per head."""

    queries: slice  # rows of the queries
    keys: slice  # rows of the chunk's keys and values
    has_prefix_rows: bool  # ``keys`` begin with the prefix; if False, the keys of the prefix are put in front of them
    mask: torch.Tensor  # (queries, prefix + suffix keys): 0 where a query attends to a key, -inf elsewhere


@dataclass(frozen=True)
class Chunk:
    """Prompts that are computed together: their tokens are the rows of one matrix, prompt after prompt, unpadded."""

    num_tokens: int
    eot_rows: torch.Tensor  # (prompts,): rows of the EOT tokens
    groups: tuple[AttentionGroup, ...]  # attention of all rows
    eot_groups: tuple[AttentionGroup, ...]  # attention of the EOT rows alone; the queries are one row a prompt

    @classmethod
    def build(cls, suffix_lengths: list[int], prefix_length: int, has_prefix: bool, device: torch.device) -> Chunk:
        """Return the chunk for suffixes of these lengths (tokens), which all attend to the prefix.

        With ``has_prefix``, the chunk's first rows are the prefix; else an earlier chunk computes its keys and values.
        """
        groups, eot_groups = [], []
        eot_rows: list[int] = []
        row = prefix_length if has_prefix else 0
        for lengths in _group_by_tokens(suffix_lengths, GROUP_TOKENS):
            has_prefix_rows = has_prefix and not eot_rows
            keys = slice(0 if has_prefix_rows else row, row + sum(lengths))
            mask = _build_attention_mask(prefix_length, lengths).to(device)
            eot_offsets = torch.tensor(lengths).cumsum(0) - 1
            row_mask = mask if has_prefix_rows else mask[prefix_length:]
            groups.append(AttentionGroup(keys, keys, has_prefix_rows, row_mask))
            prompts = slice(len(eot_rows), len(eot_rows) + len(lengths))
            eot_groups.append(AttentionGroup(prompts, keys, has_prefix_rows, mask[prefix_length + eot_offsets]))
            eot_rows += (row + eot_offsets).tolist()
            row = keys.stop
        return cls(row, torch.tensor(eot_rows, device=device), tuple(groups), tuple(eot_groups))


def _build_attention_mask(prefix_length: int, suffix_lengths: list[int]) -> torch.Tensor:
    """Return the causal mask (tokens, tokens) of a prefix and the suffixes behind it: 0 or -inf.

    A token attends to the prefix and to its own suffix, up to itself.
    """
    suffix_ids = torch.arange(-1, len(suffix_lengths))  # -1: the prefix
    token_ids = torch.repeat_interleave(suffix_ids, torch.tensor([prefix_length, *suffix_lengths]))
    is_visible = (token_ids[:, None] == token_ids) | (token_ids == -1)
    return torch.zeros(len(token_ids), len(token_ids)).masked_fill_(~is_visible.tril(), -torch.inf)


def _group_by_tokens(lengths: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield groups of neighbouring ``lengths`` of sum ``max_tokens`` at most; a greater length is a group alone."""
    group: list[int] = []
    for length in lengths:
        if group and sum(group) + length > max_tokens:
            yield group
            group = []
        group.append(length)
    yield group


@dataclass(frozen=True)
class Layout:
    """The packed tokens of prompts: the common prefix, then the suffix of each prompt, the shortest first."""

    index: torch.Tensor  # (tokens,): rows of the table of vectors
    position_ids: torch.Tensor  # (tokens,): positions in the prompts
    prefix_length: int  # tokens that all prompts begin with
    suffix_lengths: list[int]  # tokens of each prompt behind the prefix, in packed order
    chunks: tuple[Chunk, ...]  # the prefix is in the first one
    unsort: torch.Tensor  # (prompts,): the inverse permutation, from packed order to the order of the prompts
    _repeated: dict[tuple[int, int], Layout] = field(default_factory=dict)  # results of ``repeat``

    @classmethod
    def build(cls, index: torch.Tensor, lengths: torch.Tensor, chunk_tokens: int = CHUNK_TOKENS) -> Layout:
        """Return the layout of prompts, each given as rows of a table of vectors.

        A token belongs to the prefix if all prompts name the same row of the table at its position. Different rows with
        equal numbers do not count as the same, since they may be learned separately.

        Args:
            index: rows of the table, int64 of shape (prompts, length); entries behind the EOT token are ignored.
            lengths: tokens of each prompt including its EOT token, int64 of shape (prompts,).
            chunk_tokens: maximal tokens of a chunk; a longer prompt is a chunk alone.
        """
        max_prefix = int(lengths.min()) - 1  # never an EOT token: the feature is read at its state
        prefix_length = int((index[:, :max_prefix] == index[:1, :max_prefix]).all(0).long().cumprod(0).sum())
        order = lengths.argsort(stable=True)
        unsort = order.argsort()
        missing = MIN_ROWS - prefix_length - int((lengths - prefix_length).sum())
        if missing > 0:  # fill up with copies of the longest prompt, whose features ``unsort`` leaves out
            copies = -(-missing // (int(lengths.max()) - prefix_length))
            order = torch.cat([order, order[-1:].expand(copies)])
        suffix_lengths = (lengths[order] - prefix_length).tolist()
        positions = torch.arange(int(lengths.max()), device=index.device)
        is_token = positions[prefix_length:] < lengths[order, None]
        packed = torch.cat([index[0, :prefix_length], index[order, prefix_length : len(positions)][is_token]])
        position_ids = torch.cat([positions[:prefix_length], positions[prefix_length:].expand_as(is_token)[is_token]])
        chunks = tuple(
            Chunk.build(chunk_lengths, prefix_length, number == 0, index.device)
            for number, chunk_lengths in enumerate(_group_by_tokens(suffix_lengths, chunk_tokens))
        )
        return cls(packed, position_ids, prefix_length, suffix_lengths[: len(unsort)], chunks, unsort)

    def repeat(self, count: int, n_ctx: int) -> Layout:
        """Return the layout of the same prompts under ``count`` contexts, all in one chunk; it is kept for later calls.

        Its table begins with ``count`` times ``n_ctx`` rows, context after context, and the rows behind them are
        shared. The prompts of one context, with their own copy of the prefix, form one attention group.
        """
        if (count, n_ctx) in self._repeated:
            return self._repeated[count, n_ctx]
        tokens = self.prefix_length + sum(self.suffix_lengths)
        index, device = self.index[:tokens], self.index.device
        numbers = torch.arange(count, device=device)[:, None]
        repeated_index = torch.where(index < n_ctx, index + n_ctx * numbers, index + n_ctx * (count - 1)).flatten()
        mask = _build_attention_mask(self.prefix_length, self.suffix_lengths).to(device)
        eot_rows = self.prefix_length + torch.tensor(self.suffix_lengths, device=device).cumsum(0) - 1
        groups, eot_groups = [], []
        for number in range(count):
            rows = slice(number * tokens, (number + 1) * tokens)
            prompts = slice(number * len(eot_rows), (number + 1) * len(eot_rows))
            groups.append(AttentionGroup(rows, rows, True, mask))
            eot_groups.append(AttentionGroup(prompts, rows, True, mask[eot_rows]))
        chunk = Chunk(len(repeated_index), (eot_rows + tokens * numbers).flatten(), tuple(groups), tuple(eot_groups))
        unsort = (self.unsort + len(eot_rows) * numbers).flatten()
        position_ids = self.position_ids[:tokens].repeat(count)
        repeated = Layout(repeated_index, position_ids, 0, self.suffix_lengths * count, (chunk,), unsort)
        return self._repeated.setdefault((count, n_ctx), repeated)
