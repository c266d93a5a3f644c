"""Which tokens of many prompts have to be computed, and in which order they lie.

The text transformer is causal. So the state of a token depends on the tokens before it alone: what all prompts have
in common at their beginning has one state for all of them, and what follows the end of a text reaches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

# Tokens of a chunk: enough for matrix products at full speed, few enough for their results to stay in the cache.
CHUNK_TOKENS = 1024
GROUP_TOKENS = (
    64  # tokens that attend together, each seeing those of its own prompt; more waste more products of hidden pairs
)
MIN_ROWS = 64  # tokens: fewer rows take MKL longer than 64


@dataclass(frozen=True)
class AttentionGroup:
    """Some neighbouring prompts of a chunk: which rows attend to which."""

    queries: slice
    keys: slice
    has_prefix_rows: bool  # the keys begin with the common prefix; else it comes before them
    mask: torch.Tensor  # (queries, prefix + own keys): 0 where a query sees a key, -inf where it does not


@dataclass(frozen=True)
class Chunk:
    """Prompts that are computed together. Their tokens lie end to end as rows of one matrix."""

    rows: int
    ends: torch.Tensor  # (prompts): the rows of the end-of-text tokens
    groups: tuple[AttentionGroup, ...]  # all rows attend
    eot_groups: tuple[AttentionGroup, ...]  # the end-of-text rows attend, numbered as the prompts are

    @classmethod
    def of(cls, lengths: list[int], prefix: int, has_prefix: bool, device: torch.device) -> Chunk:
        """The chunk of tails of these lengths; with ``has_prefix``, the prefix's rows come before them."""
        groups, eot_groups, ends = [], [], []
        row = prefix if has_prefix else 0
        for tails in _split_by_tokens(lengths, GROUP_TOKENS):
            has_prefix_rows = has_prefix and not ends
            keys = slice(0 if has_prefix_rows else row, row + sum(tails))
            mask = _attention_mask(prefix, tails).to(device)
            local = torch.tensor(tails).cumsum(0) - 1
            groups.append(AttentionGroup(keys, keys, has_prefix_rows, mask if has_prefix_rows else mask[prefix:]))
            prompts = slice(len(ends), len(ends) + len(tails))
            eot_groups.append(AttentionGroup(prompts, keys, has_prefix_rows, mask[prefix + local]))
            ends += (row + local).tolist()
            row = keys.stop
        return cls(row, torch.tensor(ends, device=device), tuple(groups), tuple(eot_groups))


def _attention_mask(prefix: int, tails: list[int]) -> torch.Tensor:
    """What each token of the prefix and of some tails behind it sees: the prefix and its own tail, up to itself."""
    owner = torch.repeat_interleave(torch.arange(-1, len(tails)), torch.tensor([prefix, *tails]))
    seen = (owner[:, None] == owner) | (owner == -1)
    return torch.zeros(len(owner), len(owner)).masked_fill_(~seen.tril(), -torch.inf)


def _split_by_tokens(lengths: list[int], size: int) -> Iterator[list[int]]:
    """Neighbours whose lengths add up to no more than ``size``; a longer one stays alone."""
    part: list[int] = []
    for length in lengths:
        if part and sum(part) + length > size:
            yield part
            part = []
        part.append(length)
    yield part


@dataclass(frozen=True)
class Layout:
    """The tokens of prompts in the order of computation: the common prefix, then the tails, the shortest first."""

    index: torch.Tensor  # (tokens): the row of the table of vectors
    position: torch.Tensor  # (tokens): the position in its prompt
    prefix: int  # tokens that all prompts begin with
    tails: list[int]  # tokens of each prompt behind the prefix, in that order
    chunks: tuple[Chunk, ...]  # the prefix is in the first
    place: torch.Tensor  # (prompts): where each prompt comes in that order
    _repeats: dict[tuple[int, int], Layout] = field(default_factory=dict)

    @classmethod
    def of(cls, index: torch.Tensor, lengths: torch.Tensor, chunk: int = CHUNK_TOKENS) -> Layout:
        """The layout of prompts that are rows of a table of vectors.

        Two prompts have a token in common if they name the same row of the table; that two rows hold equal numbers
        does not count, as they may be learned apart.

        Args:
            index: rows of the table, int64 of shape (prompts, length); what follows the end of a text is ignored.
            lengths: tokens of each prompt including its end-of-text token, int64 of shape (prompts,).
            chunk: tokens of a chunk; at least one prompt goes into it.
        """
        most = int(lengths.min()) - 1  # an end-of-text token is never common: its state is the prompt's own
        prefix = int((index[:, :most] == index[:1, :most]).all(0).long().cumprod(0).sum())
        order = lengths.argsort(stable=True)
        place = order.argsort()
        lacking = MIN_ROWS - prefix - int((lengths - prefix).sum())
        if lacking > 0:  # copies of the longest prompt, whose features nobody asks for
            copies = -(-lacking // (int(lengths.max()) - prefix))
            order = torch.cat([order, order[-1:].expand(copies)])
        tails = (lengths[order] - prefix).tolist()
        position = torch.arange(int(lengths.max()), device=index.device)
        filled = position[prefix:] < lengths[order, None]
        rows = torch.cat([index[0, :prefix], index[order, prefix : len(position)][filled]])
        positions = torch.cat([position[:prefix], position[prefix:].expand_as(filled)[filled]])
        parts = _split_by_tokens(tails, chunk)
        chunks = tuple(Chunk.of(part, prefix, number == 0, index.device) for number, part in enumerate(parts))
        return cls(rows, positions, prefix, tails[: len(place)], chunks, place)

    def repeated(self, count: int, own: int) -> Layout:
        """The same prompts ``count`` times, with other vectors in the first ``own`` rows of the table each time.

        The table has those rows for the first time, for the second, …, then the rows that are the same each time. All
        prompts are in one chunk. Those of one time share their beginning and attend together. It is made once.
        """
        if (count, own) in self._repeats:
            return self._repeats[count, own]
        tokens = self.prefix + sum(self.tails)
        index, device = self.index[:tokens], self.index.device
        step = torch.arange(count, device=device)[:, None]
        rows = torch.where(index < own, index + own * step, index + own * (count - 1)).flatten()
        mask = _attention_mask(self.prefix, self.tails).to(device)
        ends = self.prefix + torch.tensor(self.tails, device=device).cumsum(0) - 1
        groups, eot_groups = [], []
        for time in range(count):
            keys = slice(time * tokens, (time + 1) * tokens)
            groups.append(AttentionGroup(keys, keys, True, mask))
            eot_groups.append(AttentionGroup(slice(time * len(ends), (time + 1) * len(ends)), keys, True, mask[ends]))
        chunk = Chunk(len(rows), (ends + tokens * step).flatten(), tuple(groups), tuple(eot_groups))
        place = (self.place + len(ends) * step).flatten()
        repeated = Layout(rows, self.position[:tokens].repeat(count), 0, self.tails * count, (chunk,), place)
        return self._repeats.setdefault((count, own), repeated)
