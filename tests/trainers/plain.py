"""Plain NumPy versions of what several methods on frozen features share, in double precision."""

from __future__ import annotations

import math

import numpy as np
import torch


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as an array of doubles."""
    return tensor.detach().double().numpy()


def unit(rows: np.ndarray) -> np.ndarray:
    """Return the rows at length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities (n, classes) of logits (n, classes)."""
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def cosine_cross_entropy(f: np.ndarray, labels: np.ndarray, w: np.ndarray, scale: float) -> tuple[float, np.ndarray]:
    """Return the cross-entropy of ``scale`` times the cosines of f (n, dim) and w (classes, dim), its gradient by w."""
    f, u = unit(f), unit(w)
    p = softmax(scale * f @ u.T)
    rows = np.arange(len(f))
    loss = -np.log(p[rows, labels]).mean()
    p[rows, labels] -= 1
    by_u = scale * p.T @ f / len(f)
    by_w = (by_u - u * (by_u * u).sum(1, keepdims=True)) / np.linalg.norm(w, axis=1, keepdims=True)
    return loss, by_w


def learning_rates(lr: float, epochs: int, count: int) -> list[float]:
    """Return the rates of the first epochs: 1e-5 in the warm-up epoch, then the cosine curve, at ``lr`` in epoch 1."""
    curve = [(1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(count)]
    return [1e-5, *(lr * value / curve[1] for value in curve[1:])]


def train_steps(trainer, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    """Make a step of ``trainer`` on each batch (features, labels), each an epoch; return the losses."""
    trainer.num_batches, trainer.batch_idx = 1, 0
    items = ({"img": f, "label": labels, "domain": torch.zeros_like(labels)} for f, labels in batches)
    return [trainer.forward_backward(item)["loss"] for item in items]


def make_batches(count: int, classes: int = 10, dim: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return ``count`` batches of 20 random features of any length and their labels, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20) % classes
    return [(3 * torch.randn(20, dim, generator=generator), labels) for _ in range(count)]
