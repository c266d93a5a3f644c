"""Layers of CLIP's text transformer that read and write memory fewer times than the plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from vlm.text.layout import AttentionGroup

QUICK_GELU_SCALE = 1.702  # no unit; fixed by CLIP's QuickGELU, x * sigmoid(1.702 x)


class MLP(Protocol):
    """The MLP of a transformer block, by OpenAI's names."""

    c_fc: nn.Linear
    gelu: nn.Module
    c_proj: nn.Linear


def mlp(layers: MLP, x: torch.Tensor) -> torch.Tensor:
    """Return the output (rows, width) of a transformer block's MLP for ``x`` (rows, width).

    ``x * sigmoid(1.702 x)`` equals ``silu(1.702 x) / 1.702``. The matrix products apply the two factors, so QuickGELU
    passes over memory once instead of three times. An MLP with the true GELU is computed as it is.
    """
    first, second = layers.c_fc, layers.c_proj
    if isinstance(layers.gelu, nn.GELU):
        return F.linear(layers.gelu(F.linear(x, first.weight, first.bias)), second.weight, second.bias)
    x = torch.addmm(first.bias, x, first.weight.t(), alpha=QUICK_GELU_SCALE, beta=QUICK_GELU_SCALE)
    return torch.addmm(second.bias, F.silu(x), second.weight.t(), alpha=1 / QUICK_GELU_SCALE)


class PrefixAttention(torch.autograd.Function):
    """Masked attention of packed prompts with a common prefix; call ``PrefixAttention.apply``.

    The plain operations under autograd give the same result with more copies and more passes over memory.
    """

    @staticmethod
    def forward(
        ctx, query, key_value, prefix_key_value, prefix_length: int, groups: Sequence[AttentionGroup], num_heads: int
    ):
        """Return the attention output (queries, width), with the heads side by side.

        Args:
            query: (queries, width).
            key_value: (rows, 2 * width), the keys and the values of the chunk side by side.
            prefix_key_value: (prefix_length, 2 * width), those of the prefix. None: ``key_value`` begins with them.
            groups: which queries attend to which rows: the chunk's ``groups``, or ``eot_groups`` for EOT queries.
        """
        output, weights = torch.empty_like(query), []
        prefix = key_value[:prefix_length] if prefix_key_value is None else prefix_key_value
        scale = (query.shape[1] // num_heads) ** -0.5
        with torch.autocast(query.device.type, enabled=False):
            for group in groups:
                q = _split_heads(query[group.queries], num_heads)
                k, v = _gather_keys_and_values(group, key_value, prefix, num_heads)
                mask = group.mask.to(q.dtype).expand(num_heads, -1, -1)
                weight = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
                _split_heads(output[group.queries], num_heads).copy_(torch.bmm(weight, v))
                weights.append(weight)
        ctx.save_for_backward(query, key_value, prefix_key_value, *weights)
        ctx.prefix_length, ctx.groups, ctx.num_heads, ctx.scale = prefix_length, groups, num_heads, scale
        return output

    @staticmethod
    def backward(ctx, d_output):
        """Return the gradients of ``forward``'s arguments, from the gradient (queries, width) of its output."""
        query, key_value, prefix_key_value, *weights = ctx.saved_tensors
        prefix_length, num_heads = ctx.prefix_length, ctx.num_heads
        prefix = key_value[:prefix_length] if prefix_key_value is None else prefix_key_value
        d_query, d_key_value, d_prefix = torch.empty_like(query), torch.empty_like(key_value), torch.zeros_like(prefix)
        for group, weight in zip(ctx.groups, weights, strict=True):
            q, d_head = _split_heads(query[group.queries], num_heads), _split_heads(d_output[group.queries], num_heads)
            k, v = _gather_keys_and_values(group, key_value, prefix, num_heads)
            d_weight = torch.bmm(d_head, v.transpose(1, 2))
            d_score = (d_weight - (d_weight * weight).sum(-1, keepdim=True)).mul_(weight).mul_(ctx.scale)
            _split_heads(d_query[group.queries], num_heads).copy_(torch.bmm(d_score, k))
            d_keys = torch.stack([torch.bmm(d_score.transpose(1, 2), q), torch.bmm(weight.transpose(1, 2), d_head)])
            d_keys = d_keys.permute(2, 0, 1, 3).flatten(1)  # (keys, 2 * width)
            d_prefix += d_keys[:prefix_length]
            d_key_value[group.keys.stop - len(d_keys) + prefix_length : group.keys.stop] = d_keys[prefix_length:]
        if prefix_key_value is not None:
            return d_query, d_key_value, d_prefix, None, None, None
        d_key_value[:prefix_length] = d_prefix
        return d_query, d_key_value, None, None, None, None


def _split_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Return a view (num_heads, rows, head_dim) of ``x`` (rows, width)."""
    return x.unflatten(1, (num_heads, -1)).transpose(0, 1)


def _gather_keys_and_values(
    group: AttentionGroup, key_value: torch.Tensor, prefix: torch.Tensor, num_heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and the values of the prefix and the group's suffixes, each (num_heads, keys, head_dim)."""
    rows = key_value[group.keys] if group.has_prefix_rows else torch.cat([prefix, key_value[group.keys]])
    key, value = rows.chunk(2, dim=1)
    return _split_heads(key, num_heads), _split_heads(value, num_heads)
