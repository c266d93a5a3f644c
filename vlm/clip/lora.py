"""LoRA (Hu et al. 2021): low-rank updates of the frozen weights of attention layers, of queries and values by default.

An update is part of the weight itself (by torch's parametrizations), so any code that reads the weight, such as
``vlm.text.encoder``, reads the updated one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization

from dassl.utils import UserError

# Names of the linear layers of queries, keys and values in other libraries: CLIP's in transformers, then BERT's.
PROJECTION_NAMES = {"q": ("q_proj", "query"), "k": ("k_proj", "key"), "v": ("v_proj", "value")}


class LoRAUpdate(nn.Module):
    """Adds ``alpha / rank * up @ down`` to blocks of rows of a weight; ``up`` starts at zero."""

    mask: torch.Tensor | None = None  # in training, a factor of ``down``: see ``draw_mask``

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
        down = self.down if self.mask is None or not self.training else self.down * self.mask
        updates = iter(self.scale * self.up @ down)
        blocks = zip(weight.chunk(len(self.blocks)), self.blocks, strict=True)
        return torch.cat([block + next(updates) if is_updated else block for block, is_updated in blocks])

    def draw_mask(self, dropout: float) -> None:
        """Drop each input of each block's update with probability ``dropout``, for all tokens until the next call."""
        self.mask = F.dropout(torch.ones_like(self.down[:, :1]), dropout)


def add_lora(model: nn.Module, rank: int, alpha: float, projections: Sequence[str] = "qv") -> list[nn.Parameter]:
    """Add a ``LoRAUpdate`` to the weights of each attention layer; return the parameters of the updates.

    ``projections`` names the weights: some of q, k and v.

    Raises:
        UserError: the model has no attention layers.
    """
    parameters: list[nn.Parameter] = []
    for module in list(model.modules()):
        targets: list[tuple[nn.Module, str, tuple[bool, ...]]]
        if isinstance(module, nn.MultiheadAttention):
            targets = [(module, "in_proj_weight", tuple(name in projections for name in "qkv"))]
        else:  # CLIP's attention pool, and attention layers of other libraries
            names = (name for key in projections for name in PROJECTION_NAMES[key])
            linears = [getattr(module, name, None) for name in names]
            targets = [(linear, "weight", (True,)) for linear in linears if isinstance(linear, nn.Linear)]
        for layer, name, blocks in targets:
            update = LoRAUpdate(getattr(layer, name), blocks, rank, alpha)
            register_parametrization(layer, name, update)
            parameters += update.parameters()
    if not parameters:
        raise UserError("LoRA updates attention layers, and this model has none")
    return parameters
