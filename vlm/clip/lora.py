"""LoRA (Hu et al. 2021): attention layers learn through a low-rank update of their weights, which stay as they are.

As in the paper, of the query and value projections. The update is part of the weight itself (torch's parametrizations),
so whatever reads the weight, as :mod:`vlm.text.encoder` does, finds it updated.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from dassl.utils import UserError

# How other libraries name query and value projections that are layers of their own.
QUERY_VALUE_NAMES = ("q_proj", "v_proj", "query", "value")


class LoRAUpdate(nn.Module):
    """Adds ``alpha / rank * up @ down`` to blocks of rows of a weight. ``up`` starts at zero: nothing changes yet."""

    def __init__(self, weight: torch.Tensor, blocks: tuple[bool, ...], rank: int, alpha: float):
        """The rows of ``weight`` are ``blocks`` of one size; True for those that are updated, each on its own."""
        super().__init__()
        self.blocks, self.scale = blocks, alpha / rank
        count, size = sum(blocks), len(weight) // len(blocks)
        self.down = nn.Parameter(weight.new_empty(count, rank, weight.shape[1]))
        self.up = nn.Parameter(weight.new_zeros(count, size, rank))
        for down in self.down:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        updates = iter(self.scale * self.up @ self.down)
        parts = weight.chunk(len(self.blocks))
        return torch.cat([part + next(updates) if on else part for part, on in zip(parts, self.blocks, strict=True)])


def add_lora(model: nn.Module, rank: int, alpha: float) -> list[nn.Parameter]:
    """Give all attention layers of ``model`` low-rank updates; returns their parameters, which are to be learned.

    Raises:
        UserError: it has no attention layers.
    """
    added = []
    for module in list(model.modules()):
        if isinstance(module, nn.MultiheadAttention):
            targets = [(module, "in_proj_weight", (True, False, True))]  # queries, keys, values
        else:  # CLIP's attention pool, and attention as other libraries have it
            linears = [getattr(module, name, None) for name in QUERY_VALUE_NAMES]
            targets = [(linear, "weight", (True,)) for linear in linears if isinstance(linear, nn.Linear)]
        for owner, name, blocks in targets:
            update = LoRAUpdate(getattr(owner, name), blocks, rank, alpha)
            register_parametrization(owner, name, update)
            added += update.parameters()
    if not added:
        raise UserError("LoRA updates attention layers, and this model has none")
    return added
