"""In which order a training epoch visits the images: a function of (seed, epoch), so it is the same in every run."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, Sampler, SequentialSampler
from yacs.config import CfgNode

from dassl.distributed import get_rank, get_world_size, shard
from dassl.utils import UserError, check_availability, derive_seed

from .datasets import Datum


class EpochSampler(Sampler[int]):
    """A sampler whose order depends on ``seed`` and ``epoch`` alone; where nobody counts epochs, it is a new one each
    time."""

    epoch: int | None = None  # set by TrainLoader

    def __init__(self, data_source: list[Datum], seed: int):
        self.data_source = data_source
        self.seed = seed

    def rng(self) -> random.Random:
        if self.epoch is None:
            return random.Random(random.getrandbits(64))
        return random.Random(derive_seed(self.seed, self.epoch, type(self).__name__))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(EpochSampler):
    """Every image once, shuffled."""

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self)))
        self.rng().shuffle(order)
        return iter(order)


class _GroupedSampler(EpochSampler):
    """Batches made of ``groups_per_batch`` groups with equally many images of each."""

    def __init__(self, data_source: list[Datum], seed: int, key: str, groups_per_batch: int, images_per_group: int):
        super().__init__(data_source, seed)
        self.groups: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(data_source):
            self.groups[getattr(item, key)].append(index)
        self.groups_per_batch = groups_per_batch
        self.images_per_group = images_per_group

    def __iter__(self) -> Iterator[int]:
        rng = self.rng()
        left = {group: rng.sample(members, len(members)) for group, members in self.groups.items()}
        for _ in range(max(1, len(self) // (self.groups_per_batch * self.images_per_group))):
            for group in rng.sample(sorted(left), self.groups_per_batch):
                for _ in range(self.images_per_group):
                    if not left[group]:
                        members = self.groups[group]
                        left[group] = rng.sample(members, len(members))
                    yield left[group].pop()


class RandomDomainSampler(_GroupedSampler):
    """Batches of ``n_domain`` domains (0: all) with equally many images of each."""

    def __init__(self, data_source: list[Datum], seed: int, batch_size: int, n_domain: int):
        domains = len({item.domain for item in data_source})
        n_domain = n_domain if n_domain > 0 else domains
        if n_domain > domains or batch_size % n_domain:
            raise UserError(
                f"RandomDomainSampler: a batch of {batch_size} cannot hold {n_domain} domains equally often; "
                f"there are {domains}"
            )
        super().__init__(data_source, seed, "domain", n_domain, batch_size // n_domain)


class RandomClassSampler(_GroupedSampler):
    """Batches of ``n_ins`` images of each of ``batch_size / n_ins`` classes."""

    def __init__(self, data_source: list[Datum], seed: int, batch_size: int, n_ins: int):
        classes = len({item.label for item in data_source})
        if n_ins < 1 or batch_size % n_ins or batch_size // n_ins > classes:
            raise UserError(
                f"RandomClassSampler: a batch of {batch_size} cannot hold {n_ins} images (N_INS) of each of some "
                f"of the {classes} classes"
            )
        super().__init__(data_source, seed, "label", batch_size // n_ins, n_ins)


def build_sampler(
    sampler_type: str,
    cfg: CfgNode | None = None,
    data_source: list[Datum] | None = None,
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Sampler[int]:
    """The sampler of that name, with ``cfg.SEED``; :class:`UserError` for an unknown one."""
    seed = cfg.SEED if cfg is not None else 0
    samplers = {
        "RandomSampler": lambda: RandomSampler(data_source, seed),
        "SequentialSampler": lambda: SequentialSampler(data_source),
        "RandomDomainSampler": lambda: RandomDomainSampler(data_source, seed, batch_size, n_domain),
        "RandomClassSampler": lambda: RandomClassSampler(data_source, seed, batch_size, n_ins),
    }
    check_availability(sampler_type, samplers, "sampler")
    return samplers[sampler_type]()


class ShardedBatchSampler(BatchSampler):
    """Batches for one of several processes.

    Whoever iterates gets every batch whole. In a ``with`` of :func:`shard_loader`, each process gets its part of every batch
    (``"images"``, as for training), or every n-th batch (``"batches"``, as for evaluation).
    """

    by = ""

    def __iter__(self) -> Iterator[list[int]]:
        batches = super().__iter__()
        if self.by == "images":
            return map(shard, batches)
        return islice(batches, get_rank(), None, get_world_size()) if self.by == "batches" else batches

    def __len__(self) -> int:
        whole = super().__len__()
        return len(range(get_rank(), whole, get_world_size())) if self.by == "batches" else whole


@contextmanager
def shard_loader(loader: Any, by: str) -> Iterator[bool]:
    """Shard a loader by ``"images"`` or ``"batches"`` for the body of a ``with``; yield whether it can be.

    A loader with another batch sampler cannot: it gives everything to each process.
    """
    sampler = getattr(loader, "batch_sampler", None)
    if not isinstance(sampler, ShardedBatchSampler):
        yield False
        return
    sampler.by, before = by, sampler.by
    try:
        yield True
    finally:
        sampler.by = before
