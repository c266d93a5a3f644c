"""Tensors of the several processes of a run: gathered, averaged, made the same. Of one process, they are its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .distributed import gather, local_rank, local_size, rank, reaching_all, world_size
from .errors import UserError

AVERAGED = "_averaged"  # the mark of a parameter whose gradient is the mean over the processes


def device_of(use_cuda: bool) -> torch.device:
    """Where this process computes: on CUDA, where that is there and wanted, each process of a machine on a device of
    its own.

    Raises:
        UserError: the machine has fewer devices than processes.
    """
    if not (use_cuda and torch.cuda.is_available()):
        return torch.device("cpu")
    if world_size() == 1:
        return torch.device("cuda")
    if local_size() > torch.cuda.device_count():
        raise UserError(
            f"there are {local_size()} processes on a machine of {torch.cuda.device_count()} GPUs; start as many as "
            "there are (--nproc-per-node), or compute on the CPU (USE_CUDA False)"
        )
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


def sizes_of_all(size: int) -> list[int]:
    """A number of each process."""
    if world_size() == 1:
        return [size]
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    with reaching_all():
        dist.all_gather(sizes, torch.tensor([size]))
    return [int(each) for each in sizes]


class _Gathered(torch.autograd.Function):
    """Rows of all processes, with gradients: each row's is the sum of what all processes' losses say of it."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.sizes = sizes
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])  # all send equally much
        padded[: len(rows)] = rows
        everyone = [torch.empty_like(padded) for _ in sizes]
        with reaching_all():
            dist.all_gather(everyone, padded)
        return torch.cat([part[:size] for part, size in zip(everyone, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        with reaching_all():
            dist.all_reduce(gradient)
        return gradient.split(ctx.sizes)[rank()], None


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows (n, …) of all processes one behind the other (N, …), with gradients; ``n`` may differ among them."""
    return rows if world_size() == 1 else _Gathered.apply(rows, sizes_of_all(len(rows)))


def average_gradients(parameters: Iterable[nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
    """Put the mean over the processes in place of each gradient; returns that of the loss. A parameter without a
    gradient, which counts as zero, keeps none if it has none anywhere."""
    parameters = list(parameters)
    dtype = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
    has = torch.tensor([p.grad is not None for p in parameters], dtype=dtype, device=loss.device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([loss.detach().to(dtype).view(1), has, *(g.flatten().to(loss.device, dtype) for g in gradients)])
    with reaching_all():
        dist.all_reduce(flat)
    flat /= world_size()
    loss, has, flat = flat[0], flat[1 : 1 + len(parameters)].tolist(), flat[1 + len(parameters) :]
    means = flat.split([p.numel() for p in parameters])
    for parameter, gradient, some, mean in zip(parameters, gradients, has, means, strict=True):
        if some:  # in the layout of the gradient: fused optimizers go through memory, not through indices
            parameter.grad = gradient.copy_(mean.view_as(gradient))
        if not hasattr(parameter, AVERAGED):
            parameter.register_post_accumulate_grad_hook(lambda changed: setattr(changed, AVERAGED, False))
        setattr(parameter, AVERAGED, True)
    return loss


def are_averaged(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether nothing was added to the gradients that these parameters have since they were averaged."""
    return all(getattr(parameter, AVERAGED, False) for parameter in parameters if parameter.grad is not None)


def average_figures(figures: dict[str, Any] | None, weight: float) -> dict[str, Any] | None:
    """The mean of each figure over the processes; ``weight`` is what this one's counts, 1 on average."""
    if not figures or world_size() == 1:
        return figures
    values = torch.tensor([float(value) for value in figures.values()], dtype=torch.float64) * weight
    with reaching_all():
        dist.all_reduce(values)
    return dict(zip(figures, (values / world_size()).tolist(), strict=True))


@torch.no_grad()
def same_as_first(models: Iterable[nn.Module]) -> None:
    """Put what the first process has in place of all trained parameters and buffers."""
    if world_size() == 1:
        return
    for model in models:
        trained = [parameter.data for parameter in model.parameters() if parameter.requires_grad]
        for tensor in (*trained, *model.buffers()):
            whole = tensor.contiguous()
            with reaching_all():
                dist.broadcast(whole, 0)
            tensor.copy_(whole)


def norm_of_whole_batch(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, whose batch normalisation goes by the whole batch where each process has a part of it.

    Raises:
        UserError: on a CPU, for which PyTorch has no such batch normalisation.
    """
    if world_size() == 1 or not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return model
    if device.type != "cuda":
        raise UserError(
            "batch normalisation is to learn, and on CPUs each process would see its part of the batch alone: start "
            "the run with python, or leave the means as they are (FREEZE_BN True)"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def in_rounds(outputs: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """What each process computes of every n-th batch, given to all of them in the order of the batches.

    Args:
        outputs: tensors, or tuples of them, of this process's batches.
    """
    while True:
        own = next(outputs, None)
        everyone = gather(None if own is None else moved(own, "cpu"))
        if all(output is None for output in everyone):
            return
        yield from (moved(output, device) for output in everyone if output is not None)


def moved(value: Any, device: torch.device | str) -> Any:
    """A tensor, or a tuple of such (named ones, too), on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    parts = [moved(part, device) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
