"""The processes of a run that torchrun started: their ranks, and the collective operations between them.

Without torchrun there is one process, and nothing here uses ``torch.distributed``. With torchrun, only the main process
(rank 0) prints and writes files. If one fails, torchrun stops the others. Every process must call each collective.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import reduce
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from dassl.utils.errors import UserError, error_reason

T = TypeVar("T")
IS_AVERAGED = "_averaged"  # attribute of a parameter: whether its gradient is the mean over the processes


def get_world_size() -> int:
    """Return the number of processes of the run; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:
    """Return the number of this process in the run, from 0; 0 without torchrun."""
    return dist.get_rank() if get_world_size() > 1 else 0


def get_local_world_size() -> int:
    """Return the number of processes of the run on this machine; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if get_world_size() > 1 else 1


def get_local_rank() -> int:
    """Return the number of this process on this machine, from 0; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", 0)) if get_world_size() > 1 else 0


def is_main_process() -> bool:
    """Return whether this process has rank 0. Without torchrun, the only process has it."""
    return get_rank() == 0


def get_device(use_cuda: bool) -> torch.device:
    """Return this process's GPU if ``use_cuda`` and there is one, else the CPU; UserError for too few GPUs."""
    if not (use_cuda and torch.cuda.is_available()):
        return torch.device("cpu")
    if get_world_size() == 1:
        return torch.device("cuda")
    if get_local_world_size() > torch.cuda.device_count():
        raise UserError(
            f"{get_local_world_size()} processes on a machine of {torch.cuda.device_count()} GPUs: start as many as "
            "there are GPUs (--nproc-per-node), or compute on the CPU (USE_CUDA False)"
        )
    torch.cuda.set_device(get_local_rank())
    return torch.device("cuda", get_local_rank())


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes that torchrun started, for the body of a ``with``; ``UserError`` if that fails.

    Does nothing in one process, or if connected already. Processes other than the main one print only errors.
    """
    if not dist.is_torchelastic_launched() or int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    try:  # PyTorch picks gloo or nccl by the device of a tensor
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes of the run cannot connect: {error_reason(error)}") from error
    try:
        with nullcontext() if is_main_process() else _suppress_output():
            yield
    except Exception as error:
        get_error_handler().record_exception(error)  # torchrun reports it
        raise
    dist.destroy_process_group()


@contextmanager
def _suppress_output() -> Iterator[None]:
    """Drop standard output, warnings and progress bars in the body of a ``with``; errors still go to stderr."""
    sys.stderr.isatty = lambda: False  # type: ignore[method-assign]  # tqdm asks it whether to show a bar
    with open(os.devnull, "w", encoding="utf-8") as devnull, redirect_stdout(devnull), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def local_main_process_first() -> Iterator[None]:
    """Run a ``with`` body on each machine's local rank 0, then on its other ranks, which find the files of rank 0."""
    if get_local_rank():
        all_gather_objects(None)  # waits for all processes
    yield
    if not get_local_rank():
        all_gather_objects(None)


def run_on_main(function: Callable[[], T]) -> T:
    """Call ``function`` on the main process alone, and return its result on every process. All must call this."""
    if get_world_size() == 1:
        return function()
    result: list[Any] = [function() if is_main_process() else None]
    dist.broadcast_object_list(result)  # replaces None
    return result[0]


def shard(items: Sequence[T]) -> Sequence[T]:
    """Return this process's consecutive share of ``items``, in rank order. Shares differ by at most 1 in length."""
    rank, world_size = get_rank(), get_world_size()
    return items[len(items) * rank // world_size : len(items) * (rank + 1) // world_size]


def all_gather_objects(value: T) -> list[T]:
    """Return a list of every process's ``value``, in rank order. All processes must call this."""
    if get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_in_order(outputs: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Yield all processes' ``outputs`` (tensors, or tuples) in batch order; each rank has every world_size-th batch."""
    while True:
        output = next(outputs, None)
        gathered = all_gather_objects(None if output is None else move_to(output, "cpu"))
        if all(output is None for output in gathered):
            return
        yield from (move_to(output, device) for output in gathered if output is not None)


def move_to(value: Any, device: torch.device | str) -> Any:
    """Return ``value`` on ``device``: a tensor, or a tuple or named tuple of tensors, nested or not."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    items = [move_to(item, device) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


class _AllGatherWithGrad(torch.autograd.Function):
    """An all-gather whose backward pass sums each row's gradient over the losses of all processes."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """Return the rows of all processes; ``sizes`` holds their numbers of rows, in rank order."""
        ctx.sizes = sizes
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])  # all_gather takes tensors of one shape
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded)
        return torch.cat([tensor[:size] for tensor, size in zip(gathered, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient of this process's rows, summed over the processes' losses, and None for ``sizes``."""
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.split(ctx.sizes)[get_rank()], None


def all_gather_with_grad(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows (n, …) of all processes as (sum of n, …), in rank order, with gradients; n may differ."""
    return rows if get_world_size() == 1 else _AllGatherWithGrad.apply(rows, all_gather_objects(len(rows)))


def local_loss_weight(*sizes: int) -> float:
    """Return the factor for this process's mean loss: its images * world_size / images of the whole batch.

    The processes' mean of the weighted losses is the mean loss of the whole batch. ``sizes``: this process's number of
    images in a batch, or in a labelled and an unlabelled one; ``UserError`` if their factors differ.
    """
    totals = torch.tensor(sizes, dtype=torch.float64)
    dist.all_reduce(totals)
    weights = {size * get_world_size() / total for size, total in zip(sizes, totals.tolist(), strict=True)}
    if len(weights) > 1:
        problem = "labelled and unlabelled batches are split over the processes in different proportions"
        raise UserError(f"{problem}: BATCH_SIZE of both must be equal, or multiples of {get_world_size()} (processes)")
    return weights.pop()


def average_gradients(parameters: Iterable[nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
    """Replace each parameter's gradient by its mean over the processes; return the mean of ``loss``, a scalar.

    A missing gradient counts as zero; if it is missing in all processes, it stays so. All processes must call this.
    """
    parameters = list(parameters)
    dtype = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
    has_gradient = torch.tensor([p.grad is not None for p in parameters], dtype=dtype, device=loss.device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([has_gradient, *(t.detach().flatten().to(loss.device, dtype) for t in (loss, *gradients))])
    dist.all_reduce(flat)  # one reduction is faster than one for each parameter
    counts, sums = flat[: len(parameters)].tolist(), flat[len(parameters) :]
    mean_loss, *means = (sums / get_world_size()).split([1, *(p.numel() for p in parameters)])
    for parameter, gradient, count, mean in zip(parameters, gradients, counts, means, strict=True):
        if count:  # copy_ keeps the memory layout of the gradient, which fused optimizers rely on
            parameter.grad = gradient.copy_(mean.view_as(gradient))
        if not hasattr(parameter, IS_AVERAGED):
            parameter.register_post_accumulate_grad_hook(lambda changed: setattr(changed, IS_AVERAGED, False))
        setattr(parameter, IS_AVERAGED, True)
    return mean_loss[0]


def prepare_model(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Copy the main process's ``model`` to all processes; let ``optimizer``, if any, refuse unaveraged gradients."""
    broadcast_parameters(model)
    if get_world_size() > 1 and optimizer is not None:
        optimizer.register_step_pre_hook(_refuse_local_gradients)


def _refuse_local_gradients(optimizer: torch.optim.Optimizer, *_) -> None:
    """Raise ``UserError``, before each step, if a gradient is not averaged (see ``average_gradients``)."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if parameter.grad is not None and not getattr(parameter, IS_AVERAGED, False):
            raise UserError(
                "this trainer does not run in several processes: it steps an optimizer by gradients that "
                "model_backward has not averaged. Start it with python"
            )


def reduce_dict(metrics: dict[str, Any] | None, weight: float) -> dict[str, Any] | None:
    """Return each metric's mean over the processes, weighted by a ``local_loss_weight``; None or {} as it is."""
    if not metrics:
        return metrics
    values = torch.tensor([*map(float, metrics.values())], dtype=torch.float64) * weight
    dist.all_reduce(values)
    return dict(zip(metrics, (values / get_world_size()).tolist(), strict=True))


@torch.no_grad()
def broadcast_parameters(model: nn.Module) -> None:
    """Replace ``model``'s trainable parameters and all buffers by the main process's. All processes must call this."""
    trainable = (parameter for parameter in model.parameters() if parameter.requires_grad)
    for tensor in (*trainable, *model.buffers()) if get_world_size() > 1 else ():
        contiguous = tensor.data.contiguous()  # as broadcast takes no other layout
        dist.broadcast(contiguous, 0)
        tensor.data.copy_(contiguous)
