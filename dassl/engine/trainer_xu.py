"""The trainer that methods of domain adaptation and semi-supervised learning build on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch

from dassl.data.samplers import PARTS, shared
from dassl.utils import UserError, check_availability

from .trainer import SimpleTrainer


class TrainerXU(SimpleTrainer):
    """A trainer on labelled and unlabelled data: ``forward_backward`` takes a batch of each.

    An epoch is as long as TRAIN.COUNT_ITER says (train_x, train_u, smaller_one); the shorter loader starts again.
    """

    def run_epoch(self) -> None:
        """Raises :class:`UserError` where there are no unlabelled images, or TRAIN.COUNT_ITER names no loader."""
        if self.train_loader_u is None:
            raise UserError(
                f"{type(self).__name__} needs unlabelled images, and the data set {self.cfg.DATASET.NAME} has none"
            )
        loaders = self.train_loader_x, self.train_loader_u
        lengths = {"train_x": len(loaders[0]), "train_u": len(loaders[1]), "smaller_one": min(map(len, loaders))}
        check_availability(self.cfg.TRAIN.COUNT_ITER, lengths, "TRAIN.COUNT_ITER")
        number = lengths[self.cfg.TRAIN.COUNT_ITER]
        batches = (islice(self._repeated(loader, number), number) for loader in loaders)
        with shared(loaders[0], PARTS), shared(loaders[1], PARTS):
            self.run_batches(zip(*batches, strict=False), number)  # a loader leaves out batches that cannot be read

    def _repeated(self, loader, number: int) -> Iterator[dict]:
        """At least ``number`` batches. Each pass has an order and draws of its own, which follow from the epoch."""
        passes = math.ceil(number / len(loader))
        for turn in range(passes):
            if hasattr(loader, "epoch"):
                loader.epoch = self.epoch * passes + turn
            yield from loader

    def forward_backward(self, batch_x: dict, batch_u: dict) -> dict[str, float]:
        """One training step; returns the figures to report."""
        raise NotImplementedError

    def parse_batch_train(self, batch_x: dict, batch_u: dict) -> tuple[torch.Tensor, ...]:
        """Labelled images, their labels, and unlabelled images, on the device."""
        return tuple(x.to(self.device) for x in (batch_x["img"], batch_x["label"], batch_u["img"]))
