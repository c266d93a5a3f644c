"""Hooks: what the engine's loop does beside Dassl's steps.

A trainer that overrides ``train`` or ``run_epoch`` need not call them: seeds, draws and resume do not depend on them.
"""

from __future__ import annotations

import datetime
import time

import torch

from dassl.distributed import run_on_main
from dassl.utils.checkpoint import LATEST_NAME

from .checkpoint import remove_old_checkpoints


class HookBase:
    """A hook does nothing until a subclass overrides a method.

    ``trainer._losses`` holds the metrics that ``forward_backward`` returned in this epoch, in meters by name.
    """

    def after_step(self, trainer) -> None:
        """Act after each ``forward_backward`` of ``trainer``; here, do nothing."""

    def after_epoch(self, trainer) -> None:
        """Act after each ``after_epoch`` of ``trainer``; here, do nothing."""


class FiniteLossCheck(HookBase):
    """Stops training at a loss that is not finite, since not every method calls ``detect_anomaly``."""

    def after_step(self, trainer) -> None:
        """Raise a ``FloatingPointError`` if the metric "loss", or without one any "…loss…", is not finite."""
        meters = trainer._losses.meters
        # Beside a "loss", further losses are its terms, and a term may be a mean over no sample.
        for name in ["loss"] if "loss" in meters else [name for name in meters if "loss" in name]:
            trainer.detect_anomaly(torch.as_tensor(meters[name].val))


class LogPrinter(HookBase):
    """Prints the progress of training, in Dassl's format."""

    def after_step(self, trainer) -> None:
        """Print Dassl's training line every TRAIN.PRINT_FREQ batches, or every batch if an epoch has fewer."""
        frequency, batch = trainer.cfg.TRAIN.PRINT_FREQ, trainer.batch_idx + 1
        if batch % frequency and trainer.num_batches >= frequency:
            return
        seconds, data = trainer._batch_time, trainer._data_time
        remaining = (trainer.max_epoch - trainer.epoch) * trainer.num_batches - batch
        completed = (trainer.epoch - trainer.start_epoch) * trainer.num_batches + batch
        # Since the start, as features are encoded and models validated between batches and epochs, too.
        average = (time.time() - trainer.time_start) / completed if hasattr(trainer, "time_start") else seconds.avg
        eta = datetime.timedelta(seconds=int(average * remaining))
        print(
            f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}] batch [{batch}/{trainer.num_batches}] "
            f"time {seconds.val:.3f} ({seconds.avg:.3f}) data {data.val:.3f} ({data.avg:.3f}) "
            f"{trainer._losses} lr {trainer.current_lr:.4e} eta {eta}"
        )


class MetricsWriter(HookBase):
    """Writes the metrics and the learning rate to the loggers."""

    def after_step(self, trainer) -> None:
        """Write ``train/<metric>``, the epoch's mean so far, and ``train/lr``; steps count the run's batches from 0."""
        step = trainer.epoch * trainer.num_batches + trainer.batch_idx
        for name, meter in trainer._losses.meters.items():
            trainer.write_scalar(f"train/{name}", meter.avg, step)
        trainer.write_scalar("train/lr", trainer.current_lr, step)


class TimedCheckpointer(HookBase):
    """Saves a checkpoint if none was saved for TRAIN.CHECKPOINT_MINUTES, and removes old checkpoints.

    The next checkpoint, of any kind, replaces a timed one.
    """

    def __init__(self):
        self.last_save_time = time.time()

    def after_epoch(self, trainer) -> None:
        """Save a checkpoint if the last is TRAIN.CHECKPOINT_MINUTES old (0: never); after any save, remove old ones."""
        minutes, epoch = trainer.cfg.TRAIN.CHECKPOINT_MINUTES, trainer.epoch + 1
        can_save = trainer.last_saved_epoch != epoch and minutes > 0
        if can_save and run_on_main(lambda: time.time() - self.last_save_time >= 60 * minutes):
            trainer.save_model(trainer.epoch, trainer.output_dir, model_name=LATEST_NAME.format(epoch))
        if trainer.last_saved_epoch == epoch:
            self.last_save_time = time.time()
            remove_old_checkpoints(trainer)


def default_hooks() -> list[HookBase]:
    """Return new hooks of every kind, for one trainer."""
    return [FiniteLossCheck(), LogPrinter(), MetricsWriter(), TimedCheckpointer()]
