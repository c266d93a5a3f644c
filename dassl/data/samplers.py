"""Samplers: the order of the images in a training epoch, a function of (seed, epoch) and thus the same in every run."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, Sampler, SequentialSampler
from yacs.config import CfgNode

from dassl.distributed import get_rank, get_world_size, shard
from dassl.utils import UserError, check_availability, derive_seed

from .datasets import Datum


class EpochSampler(Sampler[int]):
    """A sampler whose order depends on ``seed`` and its ``epoch`` alone; with ``epoch`` None, each order is random."""

    epoch: int | None = None  # set by TrainLoader; None under a loader that does not count epochs

    def __init__(self, data_source: list[Datum], seed: int):
        self.data_source = data_source
        self.seed = seed

    def rng(self) -> random.Random:
        """Return a generator seeded by (seed, epoch). If ``epoch`` is None, Python's global generator seeds it."""
        if self.epoch is None:
            return random.Random(random.getrandbits(64))
        return random.Random(derive_seed(self.seed, self.epoch, type(self).__name__))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(EpochSampler):
    """A sampler of every image once, in random order."""

    def __iter__(self) -> Iterator[int]:
        """Return the indices of all images in random order."""
        order = list(range(len(self)))
        self.rng().shuffle(order)
        return iter(order)


class _GroupedSampler(EpochSampler):
    """A sampler that fills each batch with ``images_per_group`` images of each of ``groups_per_batch`` random groups.

    A group is all images of one "label" or "domain" (``key``). A group that is used up begins in a new random order.
    """

    def __init__(self, data_source: list[Datum], seed: int, key: str, groups_per_batch: int, images_per_group: int):
        super().__init__(data_source, seed)
        self.groups: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(data_source):
            self.groups[getattr(item, key)].append(index)
        self.groups_per_batch = groups_per_batch
        self.images_per_group = images_per_group

    def __iter__(self) -> Iterator[int]:
        """Yield the images' indices, batch after batch: as many whole batches as there are images for, at least one."""
        rng = self.rng()
        remaining = {group: rng.sample(members, len(members)) for group, members in self.groups.items()}
        for _ in range(max(1, len(self) // (self.groups_per_batch * self.images_per_group))):
            for group in rng.sample(sorted(remaining), self.groups_per_batch):
                for _ in range(self.images_per_group):
                    if not remaining[group]:
                        members = self.groups[group]
                        remaining[group] = rng.sample(members, len(members))
                    yield remaining[group].pop()


class RandomDomainSampler(_GroupedSampler):
    """A sampler that fills each batch from ``n_domain`` random domains (0: all), with equally many images of each."""

    def __init__(self, data_source: list[Datum], seed: int, batch_size: int, n_domain: int):
        """Raise ``UserError`` if ``n_domain`` does not divide ``batch_size`` or exceeds the number of domains."""
        domains = len({item.domain for item in data_source})
        n_domain = n_domain if n_domain > 0 else domains
        if n_domain > domains or batch_size % n_domain:
            raise UserError(
                f"RandomDomainSampler: a batch of {batch_size} cannot hold {n_domain} domains equally often; "
                f"there are {domains}"
            )
        super().__init__(data_source, seed, "domain", n_domain, batch_size // n_domain)


class RandomClassSampler(_GroupedSampler):
    """A sampler that fills each batch with ``n_ins`` images of each of ``batch_size / n_ins`` random classes."""

    def __init__(self, data_source: list[Datum], seed: int, batch_size: int, n_ins: int):
        """Raise ``UserError`` if ``n_ins`` is below 1 or no divisor of ``batch_size``, or classes are too few."""
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
    """Return a sampler of ``data_source``, which must be given, seeded by ``cfg.SEED`` (without ``cfg``, by 0).

    ``sampler_type`` is RandomSampler, SequentialSampler, RandomDomainSampler (with ``n_domain``) or RandomClassSampler
    (with ``n_ins``). Any other name, or a value that does not suit the sampler, raises ``UserError``.
    """
    seed = cfg.SEED if cfg is not None else 0
    samplers: dict[str, Callable[[list[Datum]], Sampler[int]]] = {
        "RandomSampler": lambda images: RandomSampler(images, seed),
        "SequentialSampler": SequentialSampler,
        "RandomDomainSampler": lambda images: RandomDomainSampler(images, seed, batch_size, n_domain),
        "RandomClassSampler": lambda images: RandomClassSampler(images, seed, batch_size, n_ins),
    }
    check_availability(sampler_type, samplers, "sampler")
    assert data_source is not None  # optional only because it is in Dassl's signature
    return samplers[sampler_type](data_source)


class ShardedBatchSampler(BatchSampler):
    """A batch sampler that can divide the batches among the processes.

    With ``shard_by`` "images" (for training), each process gets its shard of every batch; with "batches" (for
    evaluation), every n-th batch of n processes; with "" (the default), all batches.
    """

    shard_by = ""  # set by shard_loader

    def __iter__(self) -> Iterator[list[int]]:
        """Return an iterator over this process's batches (lists of indices), divided as ``shard_by`` says."""
        batches = super().__iter__()
        if self.shard_by == "images":
            return (list(shard(batch)) for batch in batches)
        return islice(batches, get_rank(), None, get_world_size()) if self.shard_by == "batches" else batches

    def __len__(self) -> int:
        """Return the number of all batches; with ``shard_by`` "batches", of this process's."""
        length = super().__len__()
        return len(range(get_rank(), length, get_world_size())) if self.shard_by == "batches" else length


@contextmanager
def shard_loader(loader: Any, shard_by: str) -> Iterator[bool]:
    """Divide a loader's batches among the processes for the body of a ``with``; yield whether they are divided.

    ``shard_by`` is "images" (each process gets its part of every batch) or "batches" (every n-th batch of n processes).
    Without a ``ShardedBatchSampler``, each process gets all batches.
    """
    sampler = getattr(loader, "batch_sampler", None)
    if not isinstance(sampler, ShardedBatchSampler):
        yield False
        return
    previous, sampler.shard_by = sampler.shard_by, shard_by
    try:
        yield True
    finally:
        sampler.shard_by = previous
