"""What every trainer has: registered models with their checkpoints, and the loop over epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.utils import (
    UserError,
    derive_seed,
    load_checkpoint,
    mkdir_if_missing,
    resume_from_checkpoint,
    save_checkpoint,
    set_random_seed,
    tolist_if_not,
)
from dassl.utils.checkpoint import find_checkpoint, load_state, newest


class NonFiniteLoss(UserError, FloatingPointError):
    """Training has diverged."""


class TrainerBase:
    """Keeps named models with their optimizers and schedules, and runs ``run_epoch`` from epoch to epoch."""

    scaler = None  # a torch GradScaler where a trainer uses mixed precision
    usable_untrained = False  # True in a method whose model is of use before training: it may be evaluated as it is
    seed: int | None = None  # with one, the random draws of an epoch (dropout, mixing) follow from (seed, epoch)

    def __init__(self):
        self._models: dict[str, nn.Module] = {}
        self._optims: dict[str, torch.optim.Optimizer | None] = {}
        self._scheds: dict[str, Any] = {}
        self._writer = None
        self.epoch = self.start_epoch = self.max_epoch = 0

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add this method's node, ``cfg.TRAINER.<NAME>``, with its defaults."""

    # ---- registered models ----

    def register_model(self, name: str = "model", model: nn.Module | None = None, optim=None, sched=None) -> None:
        """Put a model under the engine's care: mode, updates, checkpoints in ``<output_dir>/<name>/``."""
        if name in self._models:
            raise ValueError(f"a model is already registered as {name}")
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """All registered names, or ``names`` as a list once checked."""
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        if unknown := set(names) - set(self._models):
            raise KeyError(f"no model is registered as {unknown}")
        return names

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """``train``, or ``eval`` (also called ``test``)."""
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def trainable_parameters(self) -> int:
        """How many parameters training may change, over all registered models."""
        return sum(p.numel() for model in self._models.values() for p in model.parameters() if p.requires_grad)

    # ---- optimisation ----

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        """Raise :class:`NonFiniteLoss` (a ``FloatingPointError``, as in Dassl) unless the loss is a number."""
        if not torch.isfinite(loss).all():
            raise NonFiniteLoss(
                f"Loss is infinite or NaN! It happened in epoch {self.epoch + 1}; a smaller OPTIM.LR, or fp32, may help"
            )

    def model_zero_grad(self, names: str | list[str] | None = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: torch.Tensor) -> None:
        self.detect_anomaly(loss)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def model_update(self, names: str | list[str] | None = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is None:
                continue
            if self.scaler is None:
                self._optims[name].step()
            else:
                self.scaler.step(self._optims[name])
        if self.scaler is not None:
            self.scaler.update()

    def model_backward_and_update(self, loss: torch.Tensor, names: str | list[str] | None = None) -> None:
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def update_lr(self, names: str | list[str] | None = None) -> None:
        """Step the learning-rate schedules: trainers call it on the last batch of an epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        return self._optims[self.get_model_names(names)[0]].param_groups[0]["lr"]

    # ---- checkpoints ----

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Save every registered model after ``epoch`` (counted from 0; the checkpoint counts epochs done)."""
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": optim.state_dict() if optim is not None else None,
                "scheduler": sched.state_dict() if sched is not None else None,
                "val_result": val_result,
            }
            if self.scaler is not None and self.scaler.is_enabled():
                state["scaler"] = self.scaler.state_dict()
            save_checkpoint(state, Path(directory, name), is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory: str) -> int:
        """Continue from the newest checkpoints in ``directory``; returns the epoch to start at, 0 if there are none."""
        names = self.get_model_names()
        if not names or any(newest(Path(directory, name)) is None for name in names):
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")

        def resume(name: str, epoch: int | None = None) -> int:
            parts = self._models[name], self._optims[name], self._scheds[name]
            return resume_from_checkpoint(Path(directory, name), *parts, epoch=epoch, scaler=self.scaler)

        epochs = {name: resume(name) for name in names}
        # A run that was killed between the checkpoints of two models goes on from the last epoch that both have.
        epoch = min(epochs.values())
        for name in names:
            if epochs[name] != epoch:
                resume(name, epoch)
        return epoch

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load every registered model: that of ``epoch``, else the best on validation, else the newest.

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
            checkpoint = load_checkpoint(path)
            print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint.get("epoch")})')
            load_state(self._models[name], checkpoint["state_dict"], path)

    # ---- TensorBoard ----

    def init_writer(self, log_dir: str) -> None:
        if self._writer is None:
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

    # ---- the loop ----

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """``before_train``; ``before_epoch``, ``run_epoch``, ``after_epoch`` for each epoch; ``after_train``."""
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        self.before_train()
        for self.epoch in range(self.start_epoch, self.max_epoch):
            for loader in (getattr(self, "train_loader_x", None), getattr(self, "train_loader_u", None)):
                if hasattr(loader, "epoch"):
                    loader.epoch = self.epoch
            if self.seed is not None:
                set_random_seed(derive_seed(self.seed, self.epoch))
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self) -> None:
        pass

    def after_train(self) -> None:
        pass

    def before_epoch(self) -> None:
        pass

    def after_epoch(self) -> None:
        pass

    def run_epoch(self) -> None:
        raise NotImplementedError

    def test(self, split: str | None = None) -> float:
        raise NotImplementedError
