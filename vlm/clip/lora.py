"""LoRA (Hu et al. 2021): low-rank updates of the frozen weights of attention layers, here of queries and values.

An update is part of the weight itself (by torch's parametrizations), so any code that reads the weight, such as
:mod:`vlm.text.encoder`, reads the updated one.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from dassl.utils import UserError

# Names of the linear layers that project queries and values in other libraries: CLIP's in transformers, then BERT's.
QUERY_VALUE_NAMES = ("q_proj", "v_proj", "query", "value")


class LoRAUpdate(nn.Module):
    """Adds ``alpha / rank * up @ down`` to blocks of rows of a weight; ``up`` starts at zero."""

    def __init__(self, weight: torch.Tensor, blocks: tuple[bool, ...], rank: int, alpha: float):
        """Draw the update of ``weight``; its rows form ``len(blocks)`` blocks of one size, updated where True."""
        super().__init__()
        self.blocks, self.scale = blocks, alpha / rank
        count, size = sum(blocks), len(weight) // len(blocks)
        self.down = nn.Parameter(weight.new_empty(count, rank, weight.shape[1]))
        self.up = nn.Parameter(weight.new_zeros(count, size, rank))
        for down in self.down:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the updated weight, of the same shape."""
        updates = iter(self.scale * self.up @ self.down)
        blocks = zip(weight.chunk(len(self.blocks)), self.blocks, strict=True)
        return torch.cat([block + next(updates) if is_updated else block for block, is_updated in blocks])


def add_lora(model: nn.Module, rank: int, alpha: float) -> list[nn.Parameter]:
    """Add a :class:`LoRAUpdate` to the query and value weights of each attention layer; return the updates' parameters.

    Raises:
        UserError: the model has no attention layers.
    """
    parameters: list[nn.Parameter] = []
    for module in list(model.modules()):
        targets: list[tuple[nn.Module, str, tuple[bool, ...]]]
        if isinstance(module, nn.MultiheadAttention):
            targets = [(module, "in_proj_weight", (True, False, True))]  # queries, keys, values
        else:  # CLIP's attention pool, and attention layers of other libraries
            linears = [getattr(module, name, None) for name in QUERY_VALUE_NAMES]
            targets = [(linear, "weight", (True,)) for linear in linears if isinstance(linear, nn.Linear)]
        for layer, name, blocks in targets:
            update = LoRAUpdate(getattr(layer, name), blocks, rank, alpha)
            register_parametrization(layer, name, update)
            parameters += update.parameters()
    if not parameters:
        raise UserError("LoRA updates attention layers, and this model has none")
    return parameters
