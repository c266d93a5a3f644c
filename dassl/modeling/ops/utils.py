"""Functions of semi-supervised methods: soft labels, loss weights, averaged models."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


def sharpen_prob(p: torch.Tensor, temperature: float = 2) -> torch.Tensor:
    """Return probabilities (batch, classes) to the power ``temperature``, each row divided by its sum."""
    p = p**temperature
    return p / p.sum(dim=1, keepdim=True)


def create_onehot(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return labels (batch,) as one-hot rows: floats (batch, num_classes)."""
    return F.one_hot(label.long(), num_classes).float()


def sigmoid_rampup(current: float, rampup_length: float) -> float:
    """Return the weight exp(-5 (1 - t)^2), from exp(-5) to 1, where t is ``linear_rampup`` of the arguments."""
    return math.exp(-5 * (1 - linear_rampup(current, rampup_length)) ** 2)


def linear_rampup(current: float, rampup_length: float) -> float:
    """Return the weight ``current / rampup_length``, clipped to [0, 1]; raise ValueError for a length of 0 or less."""
    if rampup_length <= 0:
        raise ValueError(f"rampup_length is {rampup_length}; it must be above 0")
    return min(max(current / rampup_length, 0.0), 1.0)


@torch.no_grad()
def ema_model_update(model: nn.Module, ema_model: nn.Module, alpha: float) -> None:
    """Set each parameter of ``ema_model`` to ``alpha`` times itself plus ``1 - alpha`` times that of ``model``."""
    for average, parameter in zip(ema_model.parameters(), model.parameters(), strict=True):
        average.mul_(alpha).add_(parameter, alpha=1 - alpha)
