"""The processes of one run, as torchrun starts them.

Without torchrun there is one process, and nothing here touches ``torch.distributed``. With it, the main process alone
(rank 0) prints and writes files. A process that ends with an error ends the run: torchrun stops the others and reports.
What gathers, averages, reduces or broadcasts must be called by every process.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import reduce
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from dassl.utils.errors import UserError, error_reason

T = TypeVar("T")
IS_AVERAGED = "_averaged"  # marks a parameter whose gradient is the mean over the processes


def get_world_size() -> int:  # the number of processes
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:  # of this process among them, from 0
    return dist.get_rank() if get_world_size() > 1 else 0


def get_local_world_size() -> int:  # the number of processes on this machine
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if get_world_size() > 1 else 1


def get_local_rank() -> int:  # of this process among them, from 0
    return int(os.environ.get("LOCAL_RANK", 0)) if get_world_size() > 1 else 0


def is_main_process() -> bool:
    return get_rank() == 0


def get_device(use_cuda: bool) -> torch.device:
    """Return where this process computes: on CUDA, if it is there and wanted, on a GPU of its own; :class:`UserError`
    where the machine has fewer GPUs than processes."""
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
    """Join the processes that torchrun started, for the body of a ``with``, unless they are joined already.

    Processes other than the main one print errors alone.

    Raises:
        UserError: the processes do not find each other.
    """
    if not dist.is_torchelastic_launched() or int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    try:  # the backend follows from where a tensor lies
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes of the run do not find each other: {error_reason(error)}") from error
    try:
        with nullcontext() if is_main_process() else _suppress_output():
            yield
    except Exception as error:
        get_error_handler().record_exception(error)  # for torchrun's report
        raise
    dist.destroy_process_group()


@contextmanager
def _suppress_output() -> Iterator[None]:
    sys.stderr.isatty = lambda: False  # so tqdm shows no bar
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def local_main_process_first() -> Iterator[None]:
    """Let the first process of each machine run the body of a ``with`` before the others, which find what it wrote."""
    if get_local_rank():
        all_gather_objects(None)
    yield
    if not get_local_rank():
        all_gather_objects(None)


def run_on_main(function: Callable[[], T]) -> T:
    """Call ``function`` on the main process, and return its result on all."""
    if get_world_size() == 1:
        return function()
    result = [function() if is_main_process() else None]
    dist.broadcast_object_list(result)
    return result[0]


def shard(items: Sequence[T]) -> Sequence[T]:
    """Return this process's part of ``items``; the sizes of the parts differ by 1 at most."""
    rank, size = get_rank(), get_world_size()
    return items[len(items) * rank // size : len(items) * (rank + 1) // size]


def all_gather_objects(value: T) -> list[T]:
    """Return the value of each process, in the order of their ranks."""
    if get_world_size() == 1:
        return [value]
    values = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_in_order(outputs: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Yield what each process computes of every n-th batch, tensors or tuples of them, in the order of the batches."""
    while True:
        output = next(outputs, None)
        everyone = all_gather_objects(None if output is None else move_to(output, "cpu"))
        if all(output is None for output in everyone):
            return
        yield from (move_to(output, device) for output in everyone if output is not None)


def move_to(value: Any, device: torch.device | str) -> Any:
    """Return a tensor, or a (named) tuple of tensors, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    parts = [move_to(part, device) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


class _AllGatherWithGrad(torch.autograd.Function):
    """A row's gradient is the sum over the losses of all processes."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.sizes = sizes
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])  # all_gather wants tensors of one shape
        padded[: len(rows)] = rows
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded)
        return torch.cat([part[:size] for part, size in zip(everyone, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.split(ctx.sizes)[get_rank()], None


def all_gather_with_grad(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows (n, …) of all processes as (N, …), with gradients; ``n`` may differ."""
    return rows if get_world_size() == 1 else _AllGatherWithGrad.apply(rows, all_gather_objects(len(rows)))


def local_loss_weight(*sizes: int) -> float:
    """Return the weight, 1 on average, of a mean over this process's part of a batch in the mean over all parts.

    Raises:
        UserError: of several batches, labelled and unlabelled, the weights are unlike.
    """
    total = torch.tensor(sizes, dtype=torch.float64)
    dist.all_reduce(total)
    shares = {size * get_world_size() / of_all for size, of_all in zip(sizes, total.tolist(), strict=True)}
    if len(shares) > 1:
        raise UserError(
            "the parts of labelled and unlabelled batches are unlike: BATCH_SIZE of both must be the same, or a "
            f"multiple of the {get_world_size()} processes"
        )
    return shares.pop()


def average_gradients(parameters: Iterable[nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
    """Replace each gradient by its mean over the processes; return the mean of the loss.

    A parameter without a gradient counts as zero. Without one in any process, it keeps none.
    """
    parameters = list(parameters)
    dtype = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
    has = torch.tensor([p.grad is not None for p in parameters], dtype=dtype, device=loss.device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([has, *(t.detach().flatten().to(loss.device, dtype) for t in (loss, *gradients))])
    dist.all_reduce(flat)
    has, flat = flat[: len(parameters)].tolist(), flat[len(parameters) :] / get_world_size()
    loss, *means = flat.split([1, *(p.numel() for p in parameters)])
    for parameter, gradient, some, mean in zip(parameters, gradients, has, means, strict=True):
        if some:  # keeps the gradient's memory layout, which fused optimizers rely on
            parameter.grad = gradient.copy_(mean.view_as(gradient))
        if not hasattr(parameter, IS_AVERAGED):
            parameter.register_post_accumulate_grad_hook(lambda changed: setattr(changed, IS_AVERAGED, False))
        setattr(parameter, IS_AVERAGED, True)
    return loss[0]


def prepare_model(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Make a model the same in all processes, and refuse steps by gradients of one of them."""
    broadcast_parameters(model)
    if get_world_size() > 1 and optimizer is not None:
        optimizer.register_step_pre_hook(_refuse_local_gradients)


def _refuse_local_gradients(optimizer: torch.optim.Optimizer, *_) -> None:
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if parameter.grad is not None and not getattr(parameter, IS_AVERAGED, False):
            raise UserError(
                "this trainer does not run in several processes: it steps an optimizer by gradients that "
                "model_backward has not averaged. Start it with python"
            )


def reduce_dict(metrics: dict[str, Any] | None, share: float) -> dict[str, Any] | None:
    """Return the mean of each metric over the processes, of which this one's counts ``share``."""
    if not metrics:
        return metrics
    values = torch.tensor([*map(float, metrics.values())], dtype=torch.float64) * share
    dist.all_reduce(values)
    return dict(zip(metrics, (values / get_world_size()).tolist(), strict=True))


@torch.no_grad()
def broadcast_parameters(model: nn.Module) -> None:
    """Replace trained parameters and buffers by those of the main process."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    for tensor in (*trained, *model.buffers()) if get_world_size() > 1 else ():
        whole = tensor.data.contiguous()
        dist.broadcast(whole, 0)
        tensor.data.copy_(whole)
