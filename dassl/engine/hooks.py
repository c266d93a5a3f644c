"""Services that the engine's own loop adds to Dassl's. A method with a ``train`` or ``run_epoch`` of its own may never
call them: its seeds, draws, checkpoints and resume are right all the same."""

from __future__ import annotations

import datetime
import time

import torch

from dassl.distributed import run_on_main
from dassl.utils.checkpoint import LATEST_NAME

from .checkpoint import remove_old_checkpoints


class HookBase:
    """The engine calls each method with the trainer; ``trainer._losses`` holds what the steps of the epoch returned."""

    def after_step(self, trainer) -> None:
        """Called after each ``forward_backward``."""

    def after_epoch(self, trainer) -> None:
        """Called after the trainer's own ``after_epoch``."""


class FiniteLossCheck(HookBase):
    """Stops at a loss that is not finite, as not every method calls ``detect_anomaly``."""

    def after_step(self, trainer) -> None:
        meters = trainer._losses.meters
        # Where there is a "loss", others are parts of it, and may be means over no sample.
        for name in ["loss"] if "loss" in meters else [name for name in meters if "loss" in name]:
            trainer.detect_anomaly(torch.as_tensor(meters[name].val))


class LogPrinter(HookBase):
    """Prints Dassl's line every TRAIN.PRINT_FREQ batches, or every batch where an epoch has fewer."""

    def after_step(self, trainer) -> None:
        every, done = trainer.cfg.TRAIN.PRINT_FREQ, trainer.batch_idx + 1
        if done % every and trainer.num_batches >= every:
            return
        seconds, data = trainer._batch_time, trainer._data_time
        left = (trainer.max_epoch - trainer.epoch) * trainer.num_batches - done
        print(
            f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}] batch [{done}/{trainer.num_batches}] "
            f"time {seconds.val:.3f} ({seconds.avg:.3f}) data {data.val:.3f} ({data.avg:.3f}) "
            f"{trainer._losses} lr {trainer.current_lr:.4e} eta {datetime.timedelta(seconds=int(seconds.avg * left))}"
        )


class TensorBoardWriter(HookBase):
    """Writes the means of the epoch so far, and the learning rate."""

    def after_step(self, trainer) -> None:
        step = trainer.epoch * trainer.num_batches + trainer.batch_idx
        for name, meter in trainer._losses.meters.items():
            trainer.write_scalar(f"train/{name}", meter.avg, step)
        trainer.write_scalar("train/lr", trainer.current_lr, step)


class TimedCheckpointer(HookBase):
    """Saves a checkpoint after TRAIN.CHECKPOINT_MINUTES without any, and removes those that need not stay.

    The next checkpoint takes the place of one by the clock. Of others, the last TRAIN.KEEP_CHECKPOINTS stay (0: all),
    and the best one.
    """

    def __init__(self):
        self.since = time.time()

    def after_epoch(self, trainer) -> None:
        minutes, done = trainer.cfg.TRAIN.CHECKPOINT_MINUTES, trainer.epoch + 1
        is_due = trainer.last_saved_epoch != done and minutes > 0
        if is_due and run_on_main(lambda: time.time() - self.since >= 60 * minutes):
            trainer.save_model(trainer.epoch, trainer.output_dir, model_name=LATEST_NAME.format(done))
        if trainer.last_saved_epoch == done:
            self.since = time.time()
            remove_old_checkpoints(trainer)


def default_hooks() -> list[HookBase]:
    return [FiniteLossCheck(), LogPrinter(), TensorBoardWriter(), TimedCheckpointer()]
