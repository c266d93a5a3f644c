"""Prompts as rows of a table of vectors: context tokens, which a method learns, and CLIP's own words around them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vlm.text.classnames import tokenize_class_prompts
from vlm.text.encoder import TextEncoder

CLASS_TOKEN_POSITIONS = ("end", "middle", "front")  # of the class name among the context tokens


class PromptTable(nn.Module):
    """Where each token of the prompts ``[context] [CLASS].`` stands in a table of vectors.

    The table holds the context tokens, then the embeddings ``fixed`` of all other tokens, each once. ``index``
    (classes, 77) names the row at each position of each prompt, ``lengths`` (classes,) counts its tokens, and
    ``layout`` tells the text encoder what to compute of it.
    """

    def __init__(self, text_encoder: TextEncoder, names: Sequence[str], context: torch.Tensor, position: str = "end"):
        """
        Args:
            names: of the classes, as :func:`vlm.text.classnames.clean_classnames` gives them.
            context: (n_ctx, width), or (classes, n_ctx, width) where each class has its own.
            position: of the class name among the context tokens.

        Raises:
            UserError: a prompt is too long.
        """
        super().__init__()
        n_ctx, device = context.shape[-2], context.device
        # "X" keeps a place for each context token; the class name and what follows it are CLIP's own words.
        self.tokens = tokenize_class_prompts(text_encoder, names, " ".join(["X"] * n_ctx + ["{}."]))
        context_rows = torch.arange(context[..., 0].numel()).view(context.shape[:-1])
        fixed, rows = self.tokens.unique(return_inverse=True)
        rows += context_rows.numel()
        rows[:, 1 : 1 + n_ctx] = context_rows
        lengths = text_encoder.lengths(self.tokens)
        # A name that ends in marks may be fewer tokens with the full stop behind it; it never reaches the prompt's end.
        named = zip(names, lengths.tolist(), strict=True)
        counts = [min(text_encoder.count_tokens(name), length - n_ctx - 2) for name, length in named]
        order = [_token_order(n_ctx, count, position, self.tokens.shape[1]) for count in counts]
        self.register_buffer("fixed", text_encoder.embed(fixed.to(device)).detach(), persistent=False)
        self.rows = rows.to(device)  # with the class name last, wherever it stands in the prompt
        self.index = rows.gather(1, torch.tensor(order)).to(device)
        self.lengths = lengths.to(device)
        self.layout = text_encoder.layout(self.index, self.lengths)

    def table(self, context: torch.Tensor) -> torch.Tensor:
        """Return the table (rows, width) with this context."""
        return torch.cat([context.flatten(0, -2), self.fixed])

    def select_classes(
        self, context: torch.Tensor, classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the table, ``index`` and ``lengths`` of some ``classes`` (int64 numbers) alone."""
        classes = classes.to(self.index.device)
        index, lengths = self.index[classes], self.lengths[classes]
        if context.dim() == 2:
            return self.table(context), index, lengths
        number, n_ctx = context.shape[:2]
        moved = n_ctx * (torch.arange(len(classes), device=classes.device) - classes)[:, None]
        index = index + torch.where(index < number * n_ctx, moved, n_ctx * (len(classes) - number))
        return self.table(context[classes]), index, lengths


def _token_order(n_ctx: int, n_name: int, position: str, length: int) -> list[int]:
    """Return which position of ``[start, context, name, rest]`` comes at each place of the prompt."""
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]  # context tokens in front of the name
    name, rest = range(1 + n_ctx, 1 + n_ctx + n_name), range(1 + n_ctx + n_name, length)
    return [0, *range(1, 1 + before), *name, *range(1 + before, 1 + n_ctx), *rest]
