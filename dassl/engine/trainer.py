"""The loop over epochs and batches, as in Dassl: what methods build on.

    train
      before_train               # check the settings, resume, open TensorBoard
      for each epoch:            # setting self.epoch seeds the generators and tells the loaders
        before_epoch
        run_epoch                # for each batch: forward_backward, then the hooks (log line, TensorBoard, finite loss)
        after_epoch              # validate, save; then the hooks (a timed checkpoint, replaced by the next one)
      after_train                # choose the model, test

``TrainerBase`` keeps models with their optimizers; ``SimpleTrainer`` builds data and model from a config, saves,
resumes and evaluates; ``TrainerX`` trains on labelled images, ``TrainerXU`` on labelled and unlabelled ones.
"""

from __future__ import annotations

import datetime
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode

from dassl import distributed
from dassl.data import DataManager
from dassl.data.data_manager import TrainLoader
from dassl.data.features import FeatureExtractor, build_feature_loader
from dassl.data.samplers import shard_loader
from dassl.evaluation import build_evaluator
from dassl.log_format import END_OF_TRAINING
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    UserError,
    check_availability,
    derive_seed,
    load_checkpoint,
    mkdir_if_missing,
    save_checkpoint,
    set_random_seed,
    tolist_if_not,
)
from dassl.utils.checkpoint import BEST_NAME, find_checkpoint, load_model_state

from . import checkpoint, run_dir
from .extra_state import ExtraState
from .hooks import HookBase, default_hooks

Names = str | list[str] | None  # of registered models; None: all of them


class TrainerBase:
    """Keeps named models with their optimizers and schedules, and runs ``run_epoch`` from epoch to epoch."""

    seed: int | None = None  # each epoch is seeded by (seed, epoch); None: SEED is negative, and none is
    scaler: torch.amp.GradScaler | None = None  # of mixed precision
    _hooks: Sequence[HookBase] = ()
    current_lr: float | None = None  # the learning rate of this batch, for the hooks
    loss_weight = 1.0  # of several processes: this one's images * processes / all images of the batch
    last_saved_epoch = 0  # epochs done at the latest save_model
    best_result = -math.inf  # on validation images, of the epochs so far
    force_resume = False  # True: go on from checkpoints of other settings
    forced: tuple[str, ...] = ()  # what differed in earlier parts of the run (set by a resume)
    resumed_with_changes = False  # whether this part went on from other settings (set by a resume)
    earlier_world_sizes: tuple[int, ...] = ()  # how many there were in earlier parts of the run (set by a resume)

    def __init__(self):
        self._models, self._optims, self._scheds = {}, {}, {}
        self._writer = self._seeded_epoch = None
        self._epoch = self.start_epoch = self.max_epoch = 0
        self.extra_state = ExtraState()  # tensors, numbers, … that a method sets on itself in training: saved, too
        self._world_size = distributed.get_world_size()

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add this method's node, ``cfg.TRAINER.<NAME>``, with its defaults."""

    @property
    def epoch(self) -> int:
        """The epoch, from 0. Assigning it, as ``for self.epoch in`` does, begins it: it seeds the generators by
        (seed, epoch) and tells the loaders, so a resumed run draws what it would have drawn."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch
        if epoch < 0 or not self._models or epoch == self._seeded_epoch:  # the end of training, or nothing is built yet
            return
        self._seeded_epoch = epoch
        self.extra_state.begin(self)
        values = (v for value in vars(self).values() for v in (value.values() if isinstance(value, dict) else [value]))
        for loader in (value for value in values if isinstance(value, TrainLoader)):
            loader.epoch = epoch
        if self.seed is not None:
            rank = distributed.get_rank()  # the main process, of rank 0, draws as a single one would
            set_random_seed(derive_seed(self.seed, epoch, *([rank] if rank else [])))

    # ---- the loop ----

    def train(self, start_epoch: int, max_epoch: int) -> None:
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        self.before_train()  # a resumed run starts later
        self.extra_state.begin(self)
        for self.epoch in range(self.start_epoch, self.max_epoch):  # seeds the epoch: see the setter
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
            for hook in self._hooks:
                hook.after_epoch(self)
        self.after_train()

    def before_train(self) -> None: ...

    def after_train(self) -> None: ...

    def before_epoch(self) -> None: ...

    def after_epoch(self) -> None: ...

    def run_epoch(self) -> None:
        raise NotImplementedError

    def test(self, split: str | None = None) -> float:
        raise NotImplementedError

    # ---- models ----

    def register_model(self, name: str = "model", model: nn.Module | None = None, optim=None, sched=None) -> None:
        """Put a model under the engine's care: its mode, its updates, its checkpoints in ``<output_dir>/<name>/``.

        A method that trains step by step gives its first model an optimizer, whose rate is logged.
        """
        if name in self._models:
            raise ValueError(f"a model is already registered as {name}")
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched
        distributed.prepare_model(model, optim)

    def get_model_names(self, names: Names = None) -> list[str]:
        """Return all registered names, or ``names`` as a list once checked."""
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        if unknown := set(names) - set(self._models):
            raise KeyError(f"no model is registered as {unknown}")
        return names

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Set ``train``, or ``eval`` (also called ``test``)."""
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")
            distributed.broadcast_parameters(self._models[name])  # running means differ from process to process

    def trainable_parameters(self) -> int:
        """Return the number of parameters that training may change, over all registered models."""
        return sum(parameter.numel() for parameter in self._trainable())

    # ---- optimisation ----

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        """Raise a ``FloatingPointError`` unless the loss is finite."""
        if not torch.isfinite(loss).all():
            raise checkpoint.divergence_error(self, "Loss is infinite or NaN!")

    def model_zero_grad(self, names: Names = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: torch.Tensor, retain_graph: bool = False) -> None:
        """Compute the gradients of a loss that is a mean over the batch; of several processes, over all their parts."""
        if self._world_size > 1:
            loss = self.loss_weight * loss
        else:
            self.detect_anomaly(loss)  # several processes look at the mean of theirs, below, and stop together
        (loss if self.scaler is None else self.scaler.scale(loss)).backward(retain_graph=retain_graph)
        if self._world_size > 1:
            self.detect_anomaly(distributed.average_gradients(self._trainable(), loss))

    def model_update(self, names: Names = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is None:
                continue
            if self.scaler is None:
                self._optims[name].step()
            else:
                self.scaler.step(self._optims[name])
        if self.scaler is not None:
            self.scaler.update()

    def model_backward_and_update(self, loss: torch.Tensor, names: Names = None) -> None:
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def prograd_backward_and_update(
        self, loss_a: torch.Tensor, loss_b: torch.Tensor, lambda_: float = 1, names: Names = None
    ) -> None:
        """Step by the gradient of ``loss_a``, less ``lambda_`` times its part along that of ``loss_b`` where the two
        contradict (ProGrad; Zhu et al. 2023, equation 4), parameter by parameter."""
        self.model_zero_grad(names)
        self.model_backward(loss_b, retain_graph=True)
        gradients_b = {p: p.grad.clone() for p in self._trainable(names) if p.grad is not None}
        self.model_zero_grad(names)
        self.model_backward(loss_a)
        for parameter, gradient_b in gradients_b.items():
            unit = nn.functional.normalize(gradient_b.float().flatten(), dim=0).view_as(gradient_b)
            if parameter.grad is not None and (product := (parameter.grad.float() * unit).sum()) < 0:
                parameter.grad -= (lambda_ * product * unit).to(parameter.grad.dtype)
        self.model_update(names)

    def _trainable(self, names: Names = None) -> list[nn.Parameter]:
        models = [self._models[name] for name in self.get_model_names(names)]
        return [parameter for model in models for parameter in model.parameters() if parameter.requires_grad]

    def update_lr(self, names: Names = None) -> None:
        """Step the learning rates. The engine does not: ``forward_backward`` calls it, on an epoch's last batch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names: Names = None) -> float:
        return self._optims[self.get_model_names(names)[0]].param_groups[0]["lr"]

    # ---- checkpoints ----

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Save every registered model after ``epoch`` (from 0) as ``<directory>/<name>/model.pth.tar-<epochs done>``.

        ``model_name`` replaces that file name; ``is_best`` also writes ``model-best.pth.tar``. A text file
        ``checkpoint`` names the latest of any name; a resume goes on from it. Where a parameter is not finite, nothing
        is saved, but a ``FloatingPointError`` raised.
        """
        states = checkpoint.build_checkpoints(self, epoch, val_result)

        def save() -> None:
            for name, state in states.items():
                save_checkpoint(state, Path(directory, name), is_best=is_best, model_name=model_name)

        distributed.run_on_main(save)  # others wait, and find the files
        self.last_saved_epoch = epoch + 1

    def resume_model_if_exist(self, directory: str) -> int:
        """Load what the latest checkpoints in ``directory`` hold: models, optimizers, schedules, extra state, and (of
        use without a seed) random states. Return the epoch to start at, 0 if there are none."""
        state = checkpoint.load_models(self, directory)
        if state is None:
            print("No checkpoint found, train from scratch")
        self.last_saved_epoch = state["epoch"] if state else 0
        return self.last_saved_epoch

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load every model, to evaluate it: that of ``epoch``, else the best on validation, else the latest.

        Raises:
            UserError: the directory or the epoch is not there, or the checkpoint does not fit.
        """
        if not directory:
            print("Note that load_model() is skipped as no model directory is given")
            return
        if not Path(directory).is_dir():
            raise UserError(f"no model directory {directory}")
        for name in self.get_model_names():
            path = find_checkpoint(Path(directory, name), epoch)
            loaded = load_checkpoint(path)
            print(f'Loading weights to {name} from "{path}" (epoch = {loaded.get("epoch")})')
            load_model_state(self._models[name], loaded["state_dict"], path)
            self.extra_state.load_state_dict(loaded, resume=False)
        self.extra_state.restore(self)

    # ---- TensorBoard ----

    def init_writer(self, log_dir: str) -> None:
        if self._writer is None and distributed.is_main_process():
            from torch.utils.tensorboard import SummaryWriter

            print(f"Initialize tensorboard (log_dir={log_dir})")
            mkdir_if_missing(log_dir)
            self._writer = SummaryWriter(log_dir=log_dir)

    def close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)


class SimpleTrainer(TrainerBase):
    """Builds data and model from a config, trains, keeps checkpoints, evaluates.

    A method overrides ``build_model``, which sets ``self.model`` and registers what is trained, and
    ``forward_backward``, which steps it (and calls ``update_lr``).
    """

    supports_zero_shot = False  # True: the model is of use before training, so it may be evaluated as it is
    feature_extractor: FeatureExtractor | None = (
        None  # set in build_model: batches hold its features in place of images
    )
    provenance: Mapping[str, Any] = MappingProxyType({})  # set in build_model: more entries of result.json
    results: OrderedDict[str, float] | None = None  # of the latest evaluation

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.check_cfg(cfg)
        self.cfg = cfg
        self.device = distributed.get_device(cfg.USE_CUDA)
        self.seed = cfg.SEED if cfg.SEED >= 0 else None
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.force_resume = cfg.FORCE_RESUME
        self.build_data_loader()
        self.build_model()
        if self.feature_extractor is not None:
            for split, name in checkpoint.LOADER_NAMES.items():
                if (loader := getattr(self, name)) is not None:
                    setattr(self, name, build_feature_loader(loader, self.feature_extractor, split))
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise :class:`UserError` for values this method cannot use."""

    def build_data_loader(self) -> None:
        with distributed.local_main_process_first():  # it may write the shots' file
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

    @cached_property
    def _hooks(self) -> list[HookBase]:
        return default_hooks()

    # ---- the loop's policy, as in Dassl ----

    def train(self) -> None:
        if self.get_model_names():
            super().train(self.start_epoch, self.max_epoch)
        else:
            print(f"{self.cfg.TRAINER.NAME} has nothing to train; it is evaluated")
            self.time_start = time.time()
            self.after_train()

    def before_train(self) -> None:
        run_dir.check_training_cfg(self)
        self.start_epoch = checkpoint.resume(self)
        self.init_writer(str(Path(self.output_dir, "tensorboard")))
        self.time_start = time.time()

    def after_epoch(self) -> None:
        done, frequency = self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST:
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST_NAME)
        if done == self.max_epoch or (frequency > 0 and done % frequency == 0):
            self.save_model(self.epoch, self.output_dir)

    def after_train(self) -> None:
        print("\n".join(END_OF_TRAINING))
        self.results = None
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                checkpoint.check_best_exists(self, self.output_dir)
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        print(f"Elapsed: {datetime.timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()

    def run_batches(self, batches: Iterable[tuple[dict, ...]]) -> None:
        """Train on each of ``num_batches`` items, which hold the arguments of ``forward_backward``."""
        self.set_model_mode("train")
        self._losses, self._batch_time, self._data_time = MetricMeter(), AverageMeter(), AverageMeter()
        end = time.time()
        for self.batch_idx, batch in enumerate(batches):
            self._data_time.update(time.time() - end)
            self.current_lr = self.get_current_lr()  # on the last batch, forward_backward steps the schedule
            if self._world_size > 1:
                self.loss_weight = distributed.local_loss_weight(*(len(part["label"]) for part in batch))
            metrics = self.forward_backward(*batch)
            if self._world_size > 1:
                metrics = distributed.reduce_dict(metrics, self.loss_weight)
            self._losses.update(metrics)
            self._batch_time.update(time.time() - end)
            for hook in self._hooks:
                hook.after_step(self)
            end = time.time()
        self.loss_weight = 1.0

    # ---- evaluation ----

    def get_loader(self, split: str):
        loader = {"val": self.val_loader, "test": self.test_loader}.get(split)
        if loader is None:
            have = "test" if self.val_loader is None else "val, test"
            raise UserError(f'the data set {self.cfg.DATASET.NAME} has no split "{split}"; it has {have}')
        return loader

    @torch.no_grad()
    def test(self, split: str | None = None, is_final: bool = False) -> float:
        """Evaluate on ``split`` (default TEST.SPLIT); return the first result, for classification the accuracy.

        Copies of Dassl pass ``is_final``; it changes nothing.
        """
        split = split or self.cfg.TEST.SPLIT
        self.extra_state.restore(self)  # of a finished run, whose loop sets no epoch
        self.set_model_mode("eval")
        self.evaluator.reset()
        loader = self.get_loader(split)
        print(f"Evaluate on the *{split}* set")
        with checkpoint.translate_divergence(self), shard_loader(loader, "batches") as is_sharded:
            batches = tqdm(loader, disable=None, leave=False, desc=f"evaluating {split}", unit="batch")
            outputs = ((self.model_inference(images), labels) for images, labels in map(self.parse_batch_test, batches))
            if is_sharded:
                outputs = distributed.gather_in_order(outputs, self.device)
            for output, labels in outputs:
                self.evaluator.process(output, labels)
            self.results = distributed.run_on_main(self.evaluator.evaluate)
        for name, value in self.results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(self.results.values()))

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        return self.model(input)

    def parse_batch_test(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        return batch["img"].to(self.device), batch["label"].to(self.device)


class TrainerX(SimpleTrainer):
    """A trainer on labelled images: ``forward_backward`` takes a batch of ``train_loader_x``."""

    def run_epoch(self) -> None:
        self.num_batches = len(self.train_loader_x)
        with shard_loader(self.train_loader_x, "images"):
            self.run_batches(zip(self.train_loader_x))  # forward_backward(batch)

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """Train on a batch, and call ``update_lr`` on an epoch's last; return the metrics to report."""
        raise NotImplementedError

    def parse_batch_train(self, batch: dict) -> tuple[torch.Tensor, ...]:
        """Return images (or their features: ``feature_extractor``), labels and domains, on the device."""
        if isinstance(batch["img"], list):
            raise UserError(
                f"DATALOADER.K_TRANSFORMS is above 1, but {type(self).__name__} trains on one view an image"
            )
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """A trainer on labelled and unlabelled images: ``forward_backward`` takes a batch of each.

    An epoch is as long as TRAIN.COUNT_ITER says (train_x, train_u, smaller_one); the shorter loader starts again.
    """

    def run_epoch(self) -> None:
        """Raises :class:`UserError` where there are no unlabelled images, or TRAIN.COUNT_ITER names no loader."""
        loader_x, loader_u = self.train_loader_x, self.train_loader_u
        if loader_u is None:
            raise UserError(f"{type(self).__name__} needs unlabelled images, and {self.cfg.DATASET.NAME} has none")
        lengths = {"train_x": len(loader_x), "train_u": len(loader_u), "smaller_one": min(len(loader_x), len(loader_u))}
        check_availability(self.cfg.TRAIN.COUNT_ITER, lengths, "TRAIN.COUNT_ITER")
        self.num_batches = lengths[self.cfg.TRAIN.COUNT_ITER]
        with shard_loader(loader_x, "images"), shard_loader(loader_u, "images"):
            self.run_batches(zip(self._repeated(loader_x), self._repeated(loader_u), strict=True))  # (batch_x, batch_u)

    def _repeated(self, loader: TrainLoader) -> Iterator[dict]:
        """Yield ``num_batches`` batches. Each pass over the images has an order and draws of its own."""
        passes = math.ceil(self.num_batches / len(loader))
        if isinstance(loader, TrainLoader):
            loader.epoch = self.epoch * passes  # each pass counts as one
        return islice((batch for _ in range(passes) for batch in loader), self.num_batches)

    def forward_backward(self, batch_x: dict, batch_u: dict) -> dict[str, float]:
        """Train on a batch of each; return the metrics to report."""
        raise NotImplementedError

    def parse_batch_train(self, batch_x: dict, batch_u: dict) -> tuple[torch.Tensor, ...]:
        """Return labelled images, their labels, and unlabelled images, on the device."""
        return tuple(x.to(self.device) for x in (batch_x["img"], batch_x["label"], batch_u["img"]))


def __getattr__(name: str):
    """Trainers of the field import TensorBoard's writer from here; it is loaded when they do."""
    if name != "SummaryWriter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter
