"""The trainer that methods build on: data, model, evaluation and output folder from a config."""

from __future__ import annotations

import datetime
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator

import torch
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.data import DataManager
from dassl.data.bad_images import knowing_the_last
from dassl.data.feature_loader import FeatureLoader, FeatureSource
from dassl.data.samplers import PARTS, TURNS, shared, weight_of_part
from dassl.evaluation import build_evaluator
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    NotANumber,
    UserError,
    average_figures,
    check_at_least,
    check_availability,
    device_of,
    first_here_then_others,
    from_first,
    in_rounds,
)
from dassl.utils.checkpoint import BEST, LATEST
from dassl.utils.results import END_OF_TRAINING

from .base import AFTER_TRAINING, TrainerBase  # noqa: F401  TrainerBase is imported from here
from .resumable import ResumableTrainer

FINAL_MODELS = ("last_step", "best_val")  # which one is evaluated after training
LOADERS = {"train_x": "train_loader_x", "train_u": "train_loader_u", "val": "val_loader", "test": "test_loader"}


class SimpleTrainer(ResumableTrainer):
    """Builds data and model, trains, keeps checkpoints, evaluates.

    A method overrides ``build_model`` (which registers its model) and, through :class:`TrainerX`,
    ``forward_backward``; ``results`` holds what the latest evaluation gave.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.check_cfg(cfg)
        self.cfg = cfg
        self.device = device_of(cfg.USE_CUDA)
        self.seed = cfg.SEED if cfg.SEED >= 0 else None
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.force_resume = cfg.FORCE_RESUME
        self.results: OrderedDict[str, float] | None = None
        self.build_data_loader()
        self.build_model()
        self._serve_features()
        self.bad_images.expect({split: getattr(self, name, None) for split, name in LOADERS.items()})
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise :class:`UserError` for values this method cannot use."""

    def build_data_loader(self) -> None:
        with first_here_then_others():
            self.dm = DataManager(self.cfg)
        self.train_loader_x = self.dm.train_loader_x
        self.train_loader_u = self.dm.train_loader_u
        self.val_loader = self.dm.val_loader
        self.test_loader = self.dm.test_loader
        self.num_classes = self.dm.num_classes
        self.num_source_domains = self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname

    def build_model(self) -> None:
        """Make ``self.model``; register what is trained with its optimizer and schedule."""
        raise NotImplementedError

    def feature_source(self) -> FeatureSource | None:
        """What computes and keeps image features, of a method that never changes its image encoder.

        Such a method finds features (batch, dim) in place of images in every batch. By default there is none, and
        batches hold images.
        """
        return None

    def _serve_features(self) -> None:
        source = self.feature_source()
        if source is not None:
            for name in LOADERS.values():
                if (loader := getattr(self, name)) is not None:
                    setattr(self, name, FeatureLoader(loader, source, name.partition("_")[0]))

    def refuse_bad_images(self, evaluated: str = "") -> None:
        """Raise :class:`UserError` if pictures were left out, and DATASET.SKIP_BAD_IMAGES does not accept that. Those
        for testing are looked at before, unless they were just ``evaluated``, so that one message names all."""
        split = self.cfg.TEST.SPLIT
        unseen = split != evaluated and not self.cfg.TEST.NO_TEST
        self.bad_images.refuse({split: self._loader_of(split)} if unseen else {})

    def train(self) -> None:
        if self.get_model_names():
            super().train(self.start_epoch, self.max_epoch)
        else:
            print(f"{self.cfg.TRAINER.NAME} has nothing to train; it is evaluated")
            self.time_start = time.time()
            self.after_train()

    def before_train(self) -> None:
        self._check_schedule()
        super().before_train()

    def _check_schedule(self) -> None:
        """Refuse now what would only fail after hours of training."""
        c = self.cfg
        check_at_least(self.max_epoch, 1, "OPTIM.MAX_EPOCH")
        check_at_least(c.TRAIN.PRINT_FREQ, 1, "TRAIN.PRINT_FREQ")
        check_at_least(c.TRAIN.KEEP_CHECKPOINTS, 0, "TRAIN.KEEP_CHECKPOINTS")
        check_availability(c.TEST.FINAL_MODEL, FINAL_MODELS, "TEST.FINAL_MODEL")
        if not c.TEST.NO_TEST:
            self._loader_of(c.TEST.SPLIT)
            if c.TEST.FINAL_MODEL == "best_val":
                self._loader_of("val")

    def after_train(self) -> None:
        print("\n".join(END_OF_TRAINING))
        self.results = None
        self.refuse_bad_images()
        if self.cfg.TEST.NO_TEST:
            self.bad_images.tell()
        else:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self._require_best()
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        elapsed = round(time.time() - self.time_start)
        print(f"Elapsed: {datetime.timedelta(seconds=elapsed)}")
        self.close_writer()

    def after_epoch(self) -> None:
        done = self.epoch + 1
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST:
            try:
                result = self.test(split="val")
            except NotANumber as error:
                raise self._diverged(f"{error}!") from error
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST)
        frequency, minutes = self.cfg.TRAIN.CHECKPOINT_FREQ, self.cfg.TRAIN.CHECKPOINT_MINUTES
        if done == self.max_epoch or (frequency > 0 and done % frequency == 0):
            self.keep_checkpoint()
        elif minutes > 0 and from_first(lambda: time.time() - self._saved_at >= 60 * minutes):
            self.keep_checkpoint(LATEST.format(done))

    def _loader_of(self, split: str):
        loader = {"val": self.val_loader, "test": self.test_loader}.get(split)
        if loader is None:
            have = "test" if self.val_loader is None else "val, test"
            raise UserError(f'the data set {self.cfg.DATASET.NAME} has no split "{split}"; it has {have}')
        return loader

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on ``split`` (default TEST.SPLIT); returns the first result, for classification the accuracy. There
        is none, but a :class:`UserError`, if images cannot be read and DATASET.SKIP_BAD_IMAGES does not accept that."""
        split = split or self.cfg.TEST.SPLIT
        self.set_model_mode("eval")
        self.evaluator.reset()
        loader = self.bad_images.left_out_of(split, self._loader_of(split))
        print(f"Evaluate on the *{split}* set")
        with shared(loader, TURNS) as dealt:
            outputs = self._outputs(tqdm(loader, disable=None, leave=False, desc=f"evaluating {split}", unit="batch"))
            for output, labels in in_rounds(outputs, self.device) if dealt else outputs:
                self.evaluator.process(output, labels)
        self.bad_images.gather()
        if split in self.bad_images or self.stage == AFTER_TRAINING:  # a method may have its own after_train
            self.refuse_bad_images(evaluated=split)
        self.results = from_first(self.evaluator.evaluate)
        self.bad_images.tell()
        for name, value in self.results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(self.results.values()))

    def _outputs(self, batches: Iterable[dict]) -> Iterator[tuple]:
        for batch in batches:
            images, labels = self.parse_batch_test(batch)
            yield self.model_inference(images), labels

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        return self.model(input)

    def parse_batch_test(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def run_batches(self, batches: Iterable[tuple[dict, ...]], number: int) -> None:
        """An epoch of ``number`` steps; each tuple holds what ``forward_backward`` takes."""
        self.set_model_mode("train")
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        self.num_batches = number
        end = time.time()
        for self.batch_idx, (batch, is_last) in enumerate(knowing_the_last(batches)):
            if is_last:  # there are fewer than announced if some could not be read
                self.num_batches = self.batch_idx + 1
            data_time.update(time.time() - end)
            # The rate of this batch: on the last one, forward_backward steps the schedule.
            self.batch_rate = rate = self.get_current_lr()
            self.part_weight = weight_of_part(batch)
            figures = average_figures(self.forward_backward(*batch), self.part_weight)
            self.check_losses(figures)
            losses.update(figures)
            batch_time.update(time.time() - end)
            few = self.num_batches < self.cfg.TRAIN.PRINT_FREQ
            if few or (self.batch_idx + 1) % self.cfg.TRAIN.PRINT_FREQ == 0:
                self._print_progress(batch_time, data_time, losses, rate)
            step = self.epoch * number + self.batch_idx
            for name, meter in losses.meters.items():
                self.write_scalar(f"train/{name}", meter.avg, step)
            self.write_scalar("train/lr", rate, step)
            end = time.time()
        self.part_weight = 1.0
        self.bad_images.gather()

    def _print_progress(
        self, batch_time: AverageMeter, data_time: AverageMeter, losses: MetricMeter, rate: float
    ) -> None:
        left = (self.max_epoch - self.epoch) * self.num_batches - self.batch_idx - 1
        eta = datetime.timedelta(seconds=int(batch_time.avg * left))
        print(
            f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}] "
            f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) data {data_time.val:.3f} ({data_time.avg:.3f}) "
            f"{losses} lr {rate:.4e} eta {eta}"
        )


class TrainerX(SimpleTrainer):
    """A trainer on labelled data: ``forward_backward`` takes a batch of ``train_loader_x``."""

    def run_epoch(self) -> None:
        with shared(self.train_loader_x, PARTS):
            self.run_batches(zip(self.train_loader_x), len(self.train_loader_x))

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """One training step; returns the figures to report."""
        raise NotImplementedError

    def parse_batch_train(self, batch: dict) -> tuple[torch.Tensor, ...]:
        """Images, labels and domains, on the device."""
        if isinstance(batch["img"], list):
            views = len(batch["img"])
            raise UserError(
                f"DATALOADER.K_TRANSFORMS is {views}, but {type(self).__name__} trains on one view an image"
            )
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))


def __getattr__(name: str):
    """Trainers of the field import TensorBoard's writer from here; it is loaded when they do."""
    if name != "SummaryWriter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter
