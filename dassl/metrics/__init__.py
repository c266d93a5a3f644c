"""Metrics of a batch."""

import torch


def compute_accuracy(output, target: torch.Tensor, topk: tuple[int, ...] = (1,)) -> list[torch.Tensor]:
    """Return the top-k accuracies in percent, one tensor (1,) for each k.

    Args:
        output (Tensor or tuple): logits (batch, classes), or a tuple whose first element is the logits.
        target: labels (batch,).
    """
    logits = output[0] if isinstance(output, (tuple, list)) else output
    ranked = logits.topk(min(max(topk), logits.shape[1]), dim=1).indices
    hits = ranked == target.view(-1, 1)
    return [hits[:, :k].sum().float().view(1) * (100.0 / len(target)) for k in topk]
