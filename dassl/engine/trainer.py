"""The base classes of trainers: the loop over epochs and batches, as in Dassl.

    train
      before_train               # check the config, resume, open the loggers (TensorBoard)
      for each epoch:            # setting self.epoch seeds the generators and sets the epoch of the loaders
        before_epoch
        run_epoch                # for each batch: forward_backward, then the hooks (log line, loggers, finite loss)
        after_epoch              # validate, save; then the hooks (a timed checkpoint, replaced by the next one)
      after_train                # choose the model, test

``TrainerBase`` holds models with their optimizers; ``SimpleTrainer`` builds data and model from a config, saves,
resumes and evaluates; ``TrainerX`` trains on labelled images, ``TrainerXU`` on labelled and unlabelled ones.
"""

from __future__ import annotations

import datetime
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
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
    count_num_param,
    derive_seed,
    load_checkpoint,
    save_checkpoint,
    set_random_seed,
    tolist_if_not,
)
from dassl.utils.checkpoint import BEST_NAME, find_checkpoints, load_model_state
from dassl.utils.progress import progress_bar

from . import checkpoint, run_dir
from .extra_state import ExtraState
from .hooks import HookBase, default_hooks
from .loggers import MetricsLogger, TensorBoardLogger, build_loggers

Names = str | list[str] | None  # of registered models; None: all of them


class TrainerBase:
    """Holds named models with their optimizers and schedules, and calls ``run_epoch`` for each epoch."""

    seed: int | None = None  # each epoch is seeded by (seed, epoch); None: no epoch is, as SEED is negative
    scaler: torch.amp.GradScaler | None = None  # of mixed precision
    current_lr: float | None = None  # learning rate of this batch, for the hooks; None before training
    local_loss_weight = 1.0  # of this process in the mean over processes (distributed.local_loss_weight)
    last_saved_epoch = 0  # number of completed epochs at the latest save_model
    best_result = -math.inf  # on validation images, of the epochs so far
    force_resume = False  # True: resume from checkpoints of other settings
    forced: tuple[str, ...] = ()  # changes that earlier resumes were forced to accept (set by a resume)
    resumed_with_changes = False  # whether this resume was forced to accept changes (set by a resume)
    earlier_world_sizes: tuple[int, ...] = ()  # numbers of processes before this resume (set by a resume)

    def __init__(self):
        self._models, self._optims, self._scheds = {}, {}, {}
        self._writer = self._seeded_epoch = None
        self._loggers: list[MetricsLogger] = []  # those that are open
        self._epoch = self.start_epoch = self.max_epoch = 0
        self.extra_state = ExtraState()  # saves attributes that a method sets on the trainer in training
        self._world_size = distributed.get_world_size()

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add this method's node ``TRAINER.<NAME>``, with the defaults of its keys, to ``cfg`` in place."""

    @cached_property
    def _hooks(self) -> Sequence[HookBase]:
        """The hooks that the loop calls; TrainerBase has TensorBoard's logger alone, as it has no config."""
        return [TensorBoardLogger()]

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        """Begin an epoch: seed the generators by (seed, epoch), so that a resume is exact; set the loaders' epoch.

        Does no more than set the number if it is negative or the same again, or no model is registered.
        """
        self._epoch = epoch
        if epoch < 0 or not self._models or epoch == self._seeded_epoch:  # training has ended, or nothing is built yet
            return
        self._seeded_epoch = epoch
        self.extra_state.begin(self)
        values = (v for value in vars(self).values() for v in (value.values() if isinstance(value, dict) else [value]))
        for loader in (value for value in values if isinstance(value, TrainLoader)):
            loader.epoch = epoch
        if self.seed is not None:
            rank = distributed.get_rank()  # rank 0 draws what a run in one process draws
            set_random_seed(derive_seed(self.seed, epoch, *([rank] if rank else [])))

    # ---- the loop ----

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Train from ``start_epoch`` (from 0; later in a resumed run) until ``max_epoch`` epochs are completed."""
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        self.before_train()  # a resume sets start_epoch
        self._epoch = max(self.start_epoch - 1, 0)  # of a finished run, which is only tested
        self.extra_state.begin(self)
        for self.epoch in range(self.start_epoch, self.max_epoch):  # seeds the epoch: see the setter
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
            for hook in self._hooks:
                hook.after_epoch(self)
        self.after_train()

    def before_train(self) -> None:
        """Act once before the first epoch; here, do nothing."""

    def after_train(self) -> None:
        """Act once after the last epoch; here, do nothing."""

    def before_epoch(self) -> None:
        """Act before each epoch; here, do nothing."""

    def after_epoch(self) -> None:
        """Act after each epoch; here, do nothing."""

    def run_epoch(self) -> None:
        """Train for one epoch; a subclass must override this method."""
        raise NotImplementedError

    def test(self, split: str | None = None) -> float:
        """Evaluate on ``split`` (None: the default); return the result. A subclass must override this method."""
        raise NotImplementedError

    # ---- models ----

    def register_model(self, name: str = "model", model: nn.Module | None = None, optim=None, sched=None) -> None:
        """Register a model: the engine sets its mode, updates it by ``optim``, and saves it in ``OUTPUT_DIR/<name>/``.

        A model without ``optim`` is saved but not updated; the first model has one, whose learning rate is logged.
        ``sched`` is the schedule of ``optim``. Raises a ValueError if ``name`` is registered already.
        """
        assert model is not None  # it has a default only because Dassl's signature has one
        if name in self._models:
            raise ValueError(f"a model is already registered as {name}")
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched
        distributed.prepare_model(model, optim)

    def get_model_names(self, names: Names = None) -> list[str]:
        """Return the names of all models, or ``names``, one or several, as a list; ``KeyError`` for an unknown one."""
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        if unknown := set(names) - set(self._models):
            raise KeyError(f"no model is registered as {unknown}")
        return names

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Set the models in ``names`` (None: all) to training mode, or with ``eval`` or ``test`` to evaluation mode."""
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")
            distributed.broadcast_parameters(self._models[name])  # as running means differ between processes

    def num_trainable_parameters(self) -> int:
        """Return the number of elements of all trainable parameters of the registered models."""
        return count_num_param(params=self._trainable())

    # ---- optimisation ----

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        """Raise a ``FloatingPointError`` if an element of ``loss`` is infinite or NaN."""
        if not torch.isfinite(loss).all():
            raise checkpoint.divergence_error(self, "Loss is infinite or NaN!")

    def model_zero_grad(self, names: Names = None) -> None:
        """Reset the gradients of the models in ``names`` (None: all) that have an optimizer."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: torch.Tensor, retain_graph: bool = False) -> None:
        """Compute the gradients of ``loss``, a mean over this process's images; average them over the processes.

        Raises a ``FloatingPointError`` if the loss is not finite.
        """
        if self._world_size > 1:
            loss = self.local_loss_weight * loss
        else:
            self.detect_anomaly(loss)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward(retain_graph=retain_graph)
        if self._world_size > 1:  # all processes check the mean of their losses, so that they stop together
            self.detect_anomaly(distributed.average_gradients(self._trainable(), loss))

    def model_update(self, names: Names = None) -> None:
        """Make an optimizer step for each of the models in ``names`` (None: all) that has an optimizer."""
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
        """Reset gradients, compute those of ``loss``, and make a step for the models in ``names`` (None: all)."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def prograd_backward_and_update(
        self, loss_a: torch.Tensor, loss_b: torch.Tensor, lambda_: float = 1, names: Names = None
    ) -> None:
        """Make a step by the gradient of ``loss_a``, projected where it conflicts with that of ``loss_b``.

        The gradients of a parameter conflict if their inner product is negative. Then ``lambda_`` times the projection
        of the first on the second is subtracted (ProGrad; Zhu et al. 2023, equation 4).
        """
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
        """Return the trainable parameters of the models in ``names`` (None: all)."""
        models = [self._models[name] for name in self.get_model_names(names)]
        return [parameter for model in models for parameter in model.parameters() if parameter.requires_grad]

    def update_lr(self, names: Names = None) -> None:
        """Step the schedules of the models in ``names`` (None: all).

        ``forward_backward``, not the engine, calls this method, on an epoch's last batch.
        """
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names: Names = None) -> float:
        """Return the learning rate of the first parameter group of the first model in ``names`` (None: of all)."""
        return self._optims[self.get_model_names(names)[0]].param_groups[0]["lr"]

    # ---- checkpoints ----

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Save every registered model after ``epoch`` (from 0) as ``<directory>/<name>/model.pth.tar-<epoch + 1>``.

        ``model_name`` replaces that file name; ``is_best`` also writes ``model-best.pth.tar``. The files hold
        ``val_result``, the result on validation images. A text file ``checkpoint`` names the file that was saved last,
        from which a run resumes. If a parameter is not finite, saves nothing and raises a ``FloatingPointError``.
        """
        checkpoints = checkpoint.build_checkpoints(self, epoch, val_result)

        def save() -> None:
            """Write the checkpoints of all models."""
            for name, content in checkpoints.items():
                save_checkpoint(content, Path(directory, name), is_best=is_best, model_name=model_name)

        distributed.run_on_main(save)  # the other processes wait until the files exist
        self.last_saved_epoch = epoch + 1

    def resume_model_if_exist(self, directory: str) -> int:
        """Load the newest checkpoints in ``directory``; return the epoch to start at, 0 without checkpoints.

        Loads models, optimizers, schedules, random generators, and the attributes that the method had changed.
        """
        loaded = checkpoint.load_models(self, directory)
        if loaded is None:
            print("No checkpoint found, train from scratch")
        self.last_saved_epoch = loaded["epoch"] if loaded else 0
        return self.last_saved_epoch

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load each model's checkpoint of ``epoch`` (from 1) for evaluation; None: the best one, else the newest.

        ``directory`` is a run's, or as in ``find_checkpoints``; "" loads nothing. Raises ``UserError`` if it
        or a checkpoint is missing, or a checkpoint does not fit its model.
        """
        if not directory:
            print("Note that load_model() is skipped as no model directory is given")
            return
        for name, path in find_checkpoints(directory, self.get_model_names(), epoch).items():
            loaded = load_checkpoint(path)
            print(f'Loading weights to {name} from "{path}" (epoch = {loaded.get("epoch")})')
            load_model_state(self._models[name], loaded["state_dict"], path)
            self.extra_state.load_state_dict(loaded, resume=False)
        self.extra_state.restore(self)

    # ---- loggers ----

    def init_writer(self, log_dir: str) -> None:
        """Open the loggers, TensorBoard's in the folder ``log_dir``, on the main process alone, if none is open."""
        if not self._loggers and distributed.is_main_process():
            for logger in (hook for hook in self._hooks if isinstance(hook, MetricsLogger)):
                logger.open(self, log_dir)
                self._loggers.append(logger)

    def close_writer(self) -> None:
        """Close the loggers that are open, the last one first."""
        if self._loggers:
            try:
                self._loggers.pop().close(self)
            finally:
                self.close_writer()  # one that fails leaves no other open

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a number to the loggers that are open."""
        for logger in self._loggers:
            logger.write_scalar(self, tag, float(scalar_value), global_step)


class SimpleTrainer(TrainerBase):
    """Builds data and model from a config, trains, saves checkpoints, and evaluates.

    A trainer overrides ``build_model``, which sets ``self.model`` and registers the models to train, and
    ``forward_backward``, which makes a step (and calls ``update_lr``).
    """

    model: Any  # set in build_model: a module, called with a batch of images
    forward_backward: Callable[..., dict[str, Any] | None]  # defined in TrainerX and TrainerXU
    display_name = ""  # of the method in tables; "": the name it is registered by
    group = ""  # of the method in tables: training-free, features, prompts or towers; "": other
    supports_zero_shot = False  # True: the model may be evaluated without training
    # Keys of the method's node that only training reads; --eval-only refuses other values than in training of the rest.
    training_keys: Sequence[str] = ("PREC", "CTX_INIT")
    allowed_mismatch: tuple[str, ...] = ()  # settings other than in training that --allow-mismatch has accepted
    feature_extractor: FeatureExtractor | None = None  # set in build_model: batches hold features in place of images
    provenance: Mapping[str, Any] = MappingProxyType({})  # set in build_model: more entries of result.json
    results: OrderedDict[str, float] | None = None  # of the latest evaluation, by name

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
        """Raise ``UserError`` for config values that this method cannot use; here, for none."""

    @staticmethod
    def count_epochs(cfg: CfgNode, num_batches: int) -> int:
        """Return the epochs of a training of ``num_batches`` batches an epoch: OPTIM.MAX_EPOCH, whatever they are."""
        return cfg.OPTIM.MAX_EPOCH

    def build_data_loader(self) -> None:
        """Set ``self.dm``, a DataManager, and on ``self`` its loaders, class names, numbers of classes and domains."""
        with distributed.local_main_process_first():  # the data set may write the file of the few-shot split
            self.dm = DataManager(self.cfg)
        self.train_loader_x = self.dm.train_loader_x
        self.train_loader_u = self.dm.train_loader_u
        self.val_loader = self.dm.val_loader
        self.test_loader = self.dm.test_loader
        self.num_classes = self.dm.num_classes
        self.num_source_domains = self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname

    def build_model(self) -> None:
        """Set ``self.model``; register each model to train, with its optimizer and schedule. Methods override this."""
        raise NotImplementedError

    @cached_property
    def _hooks(self) -> Sequence[HookBase]:
        """The hooks that the loop calls, made on first use: third-party trainers may replace ``__init__``."""
        return [*default_hooks(), *build_loggers(self.cfg)]

    # ---- the steps of the loop, as in Dassl ----

    def train(self) -> None:  # type: ignore[override]  # Dassl's signature: the epochs are attributes of this class
        """Train until OPTIM.MAX_EPOCH, then test; a method without models to train is only tested."""
        if self.get_model_names():
            super().train(self.start_epoch, self.max_epoch)
        else:
            print(f"{self.cfg.TRAINER.NAME} has nothing to train; it is evaluated")
            self.time_start = time.time()
            self.init_writer(str(Path(self.output_dir, "tensorboard")))
            self.after_train()

    def before_train(self) -> None:
        """Check the config, resume if there are checkpoints, open the loggers, start the clock."""
        run_dir.check_training_cfg(self)
        self.start_epoch = checkpoint.resume(self)
        self.init_writer(str(Path(self.output_dir, "tensorboard")))
        self.time_start = time.time()

    def after_epoch(self) -> None:
        """With TEST.FINAL_MODEL best_val, and not TEST.NO_TEST, validate, and save the model if it is the best so far.

        Save a checkpoint every TRAIN.CHECKPOINT_FREQ epochs (0: never) and after the last epoch.
        """
        epoch, frequency = self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST:
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST_NAME)
        if epoch == self.max_epoch or (frequency > 0 and epoch % frequency == 0):
            self.save_model(self.epoch, self.output_dir)

    def after_train(self) -> None:
        """Test the best or the last model (TEST.FINAL_MODEL), unless TEST.NO_TEST; close the loggers."""
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
        """Train on each item of ``batches``: the arguments of ``forward_backward``, one or two batches."""
        self.set_model_mode("train")
        self._losses, self._batch_time, self._data_time = MetricMeter(), AverageMeter(), AverageMeter()
        end = time.time()
        for self.batch_idx, batch in enumerate(batches):
            self._data_time.update(time.time() - end)
            self.current_lr = self.get_current_lr()  # before forward_backward, which may step the schedule
            if self._world_size > 1:
                self.local_loss_weight = distributed.local_loss_weight(*(len(each["label"]) for each in batch))
            metrics = self.forward_backward(*batch)
            if self._world_size > 1:
                metrics = distributed.reduce_dict(metrics, self.local_loss_weight)
            self._losses.update(metrics)
            self._batch_time.update(time.time() - end)
            for hook in self._hooks:
                hook.after_step(self)
            end = time.time()
        self.local_loss_weight = 1.0

    # ---- evaluation ----

    def get_loader(self, split: str):
        """Return the loader of ``val`` or ``test``; ``UserError`` if the data set has no such split."""
        loader = {"val": self.val_loader, "test": self.test_loader}.get(split)
        if loader is None:
            splits = "test" if self.val_loader is None else "val, test"
            raise UserError(f'the data set {self.cfg.DATASET.NAME} has no split "{split}"; it has {splits}')
        return loader

    @torch.no_grad()
    def test(self, split: str | None = None, is_final: bool = False) -> float:
        """Evaluate on ``split`` (None: TEST.SPLIT); return the first result, for classification the accuracy in %.

        ``is_final`` has no effect; some versions of Dassl pass it.
        """
        split = split or self.cfg.TEST.SPLIT
        self.extra_state.restore(self)  # for a finished run that is started again: its loop begins no epoch
        self.set_model_mode("eval")
        self.evaluator.reset()
        loader = self.get_loader(split)
        print(f"Evaluate on the *{split}* set")
        with checkpoint.translate_divergence(self), shard_loader(loader, "batches") as is_sharded:
            batches = progress_bar(loader, desc=f"evaluating {split} batches", unit="batch")
            inputs = map(self.parse_batch_test, batches)
            outputs: Iterator[Any] = ((self.model_inference(images), labels) for images, labels in inputs)
            if is_sharded:
                outputs = distributed.gather_in_order(outputs, self.device)
            for output, labels in outputs:
                self.evaluator.process(output, labels)
            self.results = distributed.run_on_main(self.evaluator.evaluate)
        for name, value in self.results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(self.results.values()))

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return the model's output, such as logits (n, classes); ``input``: n images, or their features."""
        return self.model(input)

    def parse_batch_test(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``img``, images or their features, and ``label`` of a batch, on the device."""
        return batch["img"].to(self.device), batch["label"].to(self.device)


class TrainerX(SimpleTrainer):
    """Trains on labelled images: ``forward_backward`` takes a batch of ``train_loader_x``."""

    def run_epoch(self) -> None:
        """Train on each batch of ``train_loader_x``."""
        self.num_batches = len(self.train_loader_x)
        with shard_loader(self.train_loader_x, "images"):
            self.run_batches(zip(self.train_loader_x))  # forward_backward(batch)

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """Make a step on a batch, call ``update_lr`` on an epoch's last batch, and return named metrics for the log."""
        raise NotImplementedError

    def parse_batch_train(self, batch: dict) -> tuple[torch.Tensor, ...]:
        """Return images (or their features), labels and domains of a batch, on the device.

        Raises ``UserError`` if there are several views (DATALOADER.K_TRANSFORMS): such methods override this.
        """
        if isinstance(batch["img"], list):
            raise UserError(
                f"DATALOADER.K_TRANSFORMS is above 1, but {type(self).__name__} trains on one view an image"
            )
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Trains on labelled and unlabelled images: ``forward_backward`` takes a batch of each.

    TRAIN.COUNT_ITER (train_x, train_u, smaller_one) names the loader whose length is that of an epoch. A shorter loader
    starts again.
    """

    def run_epoch(self) -> None:
        """Train on pairs of batches; ``UserError`` without unlabelled images, or if COUNT_ITER is unknown."""
        loader_x, loader_u = self.train_loader_x, self.train_loader_u
        if loader_u is None:
            raise UserError(f"{type(self).__name__} needs unlabelled images, and {self.cfg.DATASET.NAME} has none")
        lengths = {"train_x": len(loader_x), "train_u": len(loader_u), "smaller_one": min(len(loader_x), len(loader_u))}
        check_availability(self.cfg.TRAIN.COUNT_ITER, lengths, "TRAIN.COUNT_ITER")
        self.num_batches = lengths[self.cfg.TRAIN.COUNT_ITER]
        with shard_loader(loader_x, "images"), shard_loader(loader_u, "images"):
            self.run_batches(zip(self._repeated(loader_x), self._repeated(loader_u), strict=True))  # (batch_x, batch_u)

    def _repeated(self, loader: TrainLoader) -> Iterator[dict]:
        """Return an iterator over ``num_batches`` batches; when ``loader`` ends, it starts again with new draws."""
        passes = math.ceil(self.num_batches / len(loader))
        if isinstance(loader, TrainLoader):
            loader.epoch = self.epoch * passes  # each pass is an epoch of the loader
        return islice((batch for _ in range(passes) for batch in loader), self.num_batches)

    def forward_backward(self, batch_x: dict, batch_u: dict) -> dict[str, float]:
        """Make a step on a labelled and an unlabelled batch, as ``TrainerX.forward_backward``; return metrics."""
        raise NotImplementedError

    def parse_batch_train(self, batch_x: dict, batch_u: dict) -> tuple[torch.Tensor, ...]:
        """Return labelled images, their labels, and unlabelled images of two batches, on the device."""
        return tuple(x.to(self.device) for x in (batch_x["img"], batch_x["label"], batch_u["img"]))


def __getattr__(name: str):
    """Import ``SummaryWriter`` of TensorBoard on first use: third-party trainers import it from this module."""
    if name != "SummaryWriter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter
