"""Several processes of one run, as torchrun starts them: who is who, what they tell each other.

Without torchrun there is one process, every function here is that of one process, and nothing of ``torch.distributed``
is touched. Of several, the first (rank 0) alone writes files and prints.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from .errors import UserError, reason_of

if TYPE_CHECKING:
    from torch.distributed import Store

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # in which a process must come to where others wait for it
RENDEZVOUS = timedelta(minutes=5)  # in which the processes must find each other


class PeerLost(Exception):
    """Another process of the run is gone, or torchrun ends this one since another is."""


class ToldElsewhere(UserError):
    """An error that another process tells: for the log alone."""


def told_by(number: int, error: BaseException) -> str:
    """An error, as others than the process that meets it tell it."""
    return f"rank {number}: {error if isinstance(error, UserError) else f'{type(error).__name__}: {error}'}"


@dataclass
class _Group:
    rank: int
    size: int
    store: Store


_group: _Group | None = None  # while this process is one of several
_groups = itertools.count()  # a process may be in several, one after the other


def rank() -> int:
    """The number of this process among those of the run, from 0."""
    return _group.rank if _group else 0


def world_size() -> int:
    """How many processes the run has."""
    return _group.size if _group else 1


def is_first() -> bool:
    return rank() == 0


def local_rank() -> int:  # among the processes of the run on this machine
    return int(os.environ.get("LOCAL_RANK", 0)) if _group else 0


def local_size() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if _group else 1


def launcher() -> list[str]:
    """What starts a script the way this one was: ``python``, or torchrun with its flags."""
    if not _group:
        return ["python"]
    nodes, run_id = os.environ.get("GROUP_WORLD_SIZE", "1"), os.environ.get("TORCHELASTIC_RUN_ID", "none")
    where = ["--nnodes", nodes] if nodes != "1" else ["--standalone"] if run_id != "none" else []
    return ["torchrun", *where, "--nproc-per-node", str(local_size())]


# ---- what they tell each other ----


@contextmanager
def reaching_all() -> Iterator[None]:
    """For the body of a ``with``, in which processes exchange something, torch's errors become :class:`PeerLost`."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(reason_of(error)) from error


def gather(value: T) -> list[T]:
    """The value of each process, in the order of their ranks."""
    if not _group:
        return [value]
    import torch.distributed as dist

    values = [None] * _group.size
    with reaching_all():
        dist.all_gather_object(values, value)
    return values


def from_first(function: Callable[[], T]) -> T:
    """What ``function`` gives on the first process, which alone calls it; an error of it is raised in all."""
    if not _group:
        return function()
    import torch.distributed as dist

    outcome: list = [None, None]
    if is_first():
        try:
            outcome[0] = function()
        except (UserError, SystemExit) as error:
            outcome[1] = error
        except Exception as error:
            with contextlib.suppress(PeerLost, RuntimeError):
                dist.broadcast_object_list([None, ToldElsewhere(told_by(0, error))])
            raise
    with reaching_all():
        dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def on_first(context: AbstractContextManager) -> AbstractContextManager:
    """``context`` on the first process; on others, one that does nothing."""
    return context if is_first() else nullcontext()


@contextmanager
def first_here_then_others() -> Iterator[None]:
    """The first process on each machine goes through the body of a ``with`` alone, then all others: what it leaves on
    disk, they find."""
    if local_rank():
        gather(None)
    yield
    if not local_rank():
        gather(None)


def part_of(items: Sequence[T]) -> Sequence[T]:
    """This process's part of ``items``: those of all, one behind the other, are the whole; their sizes differ by 1 at
    most."""
    start, end = (len(items) * number // world_size() for number in (rank(), rank() + 1))
    return items[start:end]


def store() -> Store:
    """Where the processes leave words for each other. It is torchrun's, and outlives any of them."""
    return _group.store


def place_of(number: int) -> tuple[str, int]:
    """Host and process id."""
    return tuple(json.loads(_group.store.get(f"place/{number}")))


def was_started_with_others() -> bool:
    """Whether torchrun started this process as one of several. Other launchers, such as Slurm's, may set some of its
    variables for processes that are to run alone."""
    return {"RANK", "LOCAL_RANK"} <= os.environ.keys() and int(os.environ.get("WORLD_SIZE", 1)) > 1


def join() -> None:
    """Become one of the processes that torchrun started.

    Raises:
        UserError: they do not find each other.
    """
    try:
        _join()
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of the run do not find each other: {reason_of(error)}; start it with torchrun"
        ) from error


def _join() -> None:
    global _group
    import torch
    import torch.distributed as dist

    with_cuda = torch.cuda.is_available() and dist.is_nccl_available()
    store, number, size = next(iter(dist.rendezvous("env://", timeout=RENDEZVOUS)))
    store = dist.PrefixStore(f"run{next(_groups)}", store)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if with_cuda else "gloo",  # by where a tensor lies
        store=dist.PrefixStore("group", store),
        rank=number,
        world_size=size,
        timeout=TIMEOUT,
    )
    store.set(f"place/{number}", json.dumps([socket.gethostname(), os.getpid()]))
    _group = _Group(number, size, store)


def leave(whole: bool) -> None:
    """Be one process again; the run has come to its end as a ``whole``, or others may be gone."""
    global _group
    import torch
    import torch.distributed as dist

    if whole or not torch.cuda.is_initialized():  # NCCL waits for those that are gone
        dist.destroy_process_group()
    _group = None
