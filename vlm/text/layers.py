"""Layers of CLIP's text transformer, in few passes over memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from vlm.text.layout import AttentionGroup

QUICK_GELU_SCALE = 1.702  # of CLIP's QuickGELU


def mlp(layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """CLIP's MLP. Its activation ``x * sigmoid(1.702 x)`` is ``silu(1.702 x) / 1.702``: one pass over memory instead of
    three, as the factors go into the matrix products. CLIPs of others have the true GELU."""
    first, second = layers.c_fc, layers.c_proj
    if isinstance(layers.gelu, nn.GELU):
        return F.linear(layers.gelu(F.linear(x, first.weight, first.bias)), second.weight, second.bias)
    x = torch.addmm(first.bias, x, first.weight.t(), alpha=QUICK_GELU_SCALE, beta=QUICK_GELU_SCALE)
    return torch.addmm(second.bias, F.silu(x), second.weight.t(), alpha=1 / QUICK_GELU_SCALE)


class PrefixAttention(torch.autograd.Function):
    """Attention of each query to the keys that its group's mask shows it: ``Attention.apply`` with the arguments of
    ``forward``. Autograd would do the same from the plain operations, but would copy, scatter and pass over memory more
    often."""

    @staticmethod
    def forward(ctx, query, key_value, shared, prefix: int, groups: Sequence[AttentionGroup], heads: int):
        """
        Args:
            query: (queries, width).
            key_value: keys and values side by side, (rows, 2 * width).
            shared: those of the common prefix, (prefix, 2 * width); None: they are the first ``prefix`` rows of
                ``key_value``.

        Returns:
            (queries, width), the heads side by side.
        """
        output, weights = torch.empty_like(query), []
        common = key_value[:prefix] if shared is None else shared
        scale = (query.shape[1] // heads) ** -0.5
        with torch.autocast(query.device.type, enabled=False):
            for group in groups:
                q = _split_heads(query[group.queries], heads)
                k, v = _keys_and_values(group, key_value, common, heads)
                mask = group.mask.to(q.dtype).expand(heads, -1, -1)
                weight = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
                _split_heads(output[group.queries], heads).copy_(torch.bmm(weight, v))
                weights.append(weight)
        ctx.save_for_backward(query, key_value, shared, *weights)
        ctx.prefix, ctx.groups, ctx.heads, ctx.scale = prefix, groups, heads, scale
        return output

    @staticmethod
    def backward(ctx, gradient):
        query, key_value, shared, *weights = ctx.saved_tensors
        prefix, heads = ctx.prefix, ctx.heads
        common = key_value[:prefix] if shared is None else shared
        d_query, d_key_value, d_common = torch.empty_like(query), torch.empty_like(key_value), torch.zeros_like(common)
        for group, weight in zip(ctx.groups, weights, strict=True):
            q, d_output = _split_heads(query[group.queries], heads), _split_heads(gradient[group.queries], heads)
            k, v = _keys_and_values(group, key_value, common, heads)
            d_weight = torch.bmm(d_output, v.transpose(1, 2))
            d_score = (d_weight - (d_weight * weight).sum(-1, keepdim=True)).mul_(weight).mul_(ctx.scale)
            _split_heads(d_query[group.queries], heads).copy_(torch.bmm(d_score, k))
            d_keys = torch.stack([torch.bmm(d_score.transpose(1, 2), q), torch.bmm(weight.transpose(1, 2), d_output)])
            d_keys = d_keys.permute(2, 0, 1, 3).flatten(1)  # (keys, 2 * width)
            d_common += d_keys[:prefix]
            d_key_value[group.keys.stop - len(d_keys) + prefix : group.keys.stop] = d_keys[prefix:]
        if shared is None:
            d_key_value[:prefix] = d_common
            d_common = None
        return d_query, d_key_value, d_common, None, None, None


def _split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """A view of (rows, width) as (heads, rows, head_dim)."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1)


def _keys_and_values(
    group: AttentionGroup, key_value: torch.Tensor, common: torch.Tensor, heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of the prefix and of the group's own rows, each (heads, prefix + own, head_dim)."""
    seen = key_value[group.keys] if group.has_prefix_rows else torch.cat([common, key_value[group.keys]])
    key, value = seen.chunk(2, dim=1)
    return _split_heads(key, heads), _split_heads(value, heads)
