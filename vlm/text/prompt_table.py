"""Prompts as rows of a table of vectors: context tokens, which a method learns, and frozen word embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vlm.text.classnames import tokenize_class_prompts
from vlm.text.encoder import TextEncoder

# CoOp's names for where the class name comes among the context tokens.
CLASS_TOKEN_POSITIONS = ("end", "middle", "front")


class PromptTable(nn.Module):
    """The prompts ``[context] [CLASS].`` of all classes, each token given as a row of a table of vectors.

    The table has the context vectors first, then ``fixed_embeddings``: the frozen word embeddings of all other distinct
    tokens. ``index`` (classes, length) has the rows of the prompts' tokens, ``lengths`` (classes,) the numbers of these
    tokens, start and end included, and ``layout`` the packed prompts: ``text_encoder(table, layout)`` are the features.
    """

    fixed_embeddings: torch.Tensor

    def __init__(
        self, text_encoder: TextEncoder, classnames: Sequence[str], context: torch.Tensor, position: str = "end"
    ):
        """Tokenize the prompts of all classes, and embed the tokens.

        Args:
            classnames: class names from ``vlm.text.classnames.clean_classnames``, in label order.
            context: (n_ctx, width), or (classes, n_ctx, width) for class-specific contexts. Only its shape and device
                are used; the values are an argument of ``table``.
            position: where the class name comes: "end", behind the context; "middle", behind its first ``n_ctx // 2``
                tokens; "front", before the context.

        Raises:
            UserError: a prompt is too long.
        """
        super().__init__()
        n_ctx, device = context.shape[-2], context.device
        # With the class name last. "X" is one token: a placeholder for a context token.
        self.tokens = tokenize_class_prompts(text_encoder, classnames, " ".join(["X"] * n_ctx + ["{}."]))
        context_rows = torch.arange(context[..., 0].numel()).view(context.shape[:-1])
        token_ids, rows = self.tokens.unique(return_inverse=True)
        rows += context_rows.numel()
        rows[:, 1 : 1 + n_ctx] = context_rows
        lengths = text_encoder.lengths(self.tokens)
        # A name that ends in punctuation may have fewer tokens with the full stop than without. The minimum keeps the
        # end-of-text token out of the name.
        pairs = zip(classnames, lengths.tolist(), strict=True)
        name_lengths = [min(text_encoder.count_tokens(name), length - n_ctx - 2) for name, length in pairs]
        order = [_order_tokens(n_ctx, n_name, position, self.tokens.shape[1]) for n_name in name_lengths]
        self.register_buffer("fixed_embeddings", text_encoder.embed(token_ids.to(device)).detach(), persistent=False)
        self.rows = rows.to(device)  # as ``index``, but with the class name last for any position
        self.index = rows.gather(1, torch.tensor(order)).to(device)
        self.lengths = lengths.to(device)
        self.layout = text_encoder.build_layout(self.index, self.lengths)

    def table(self, context: torch.Tensor) -> torch.Tensor:
        """Return the table (rows, width) that begins with ``context``, of the initial shape, with gradients."""
        return torch.cat([context.flatten(0, -2), self.fixed_embeddings])

    def select_classes(
        self, context: torch.Tensor, classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the table, ``index`` (n, length) and ``lengths`` (n,) for the prompts of n ``classes`` (int64 labels).

        Of class-specific contexts, the table has only those of these classes.
        """
        classes = classes.to(self.index.device)
        index, lengths = self.index[classes], self.lengths[classes]
        if context.dim() == 2:
            return self.table(context), index, lengths
        num_classes, n_ctx = context.shape[:2]
        context_shift = n_ctx * (torch.arange(len(classes), device=classes.device) - classes)[:, None]
        word_shift = n_ctx * (len(classes) - num_classes)
        index = index + torch.where(index < num_classes * n_ctx, context_shift, word_shift)
        return self.table(context[classes]), index, lengths


def count_tokens_before_name(n_ctx: int, position: str) -> int:
    """Return how many of ``n_ctx`` context tokens come before the class name at ``position``."""
    return {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]


def _order_tokens(n_ctx: int, n_name: int, position: str, length: int) -> list[int]:
    """Return, for each of a prompt's ``length`` tokens, its index among ``[start, context, name, suffix]``."""
    n_before = count_tokens_before_name(n_ctx, position)
    name, suffix = range(1 + n_ctx, 1 + n_ctx + n_name), range(1 + n_ctx + n_name, length)
    return [0, *range(1, 1 + n_before), *name, *range(1 + n_before, 1 + n_ctx), *suffix]
