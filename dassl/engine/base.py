"""What every trainer has: registered models with their checkpoints, and the loop over epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.utils import (
    NotANumber,
    UserError,
    average_gradients,
    derive_seed,
    from_first,
    is_first,
    load_checkpoint,
    mkdir_if_missing,
    random_states,
    rank,
    restore_random_states,
    same_as_first,
    save_checkpoint,
    set_random_seed,
    tolist_if_not,
    world_size,
)
from dassl.utils.checkpoint import find_checkpoint, in_step, load_state, newest, resume_from_file
from dassl.utils.collectives import are_averaged

AFTER_TRAINING = "after training"  # a stage


class NonFiniteLoss(NotANumber):
    """Training has diverged: says when, and what is safe."""


class TrainerBase:
    """Keeps named models with their optimizers and schedules, and runs ``run_epoch`` from epoch to epoch."""

    scaler = None  # a torch GradScaler where a trainer uses mixed precision
    usable_untrained = False  # True in a method whose model is of use before training: it may be evaluated as it is
    batch_rate: float | None = None  # the learning rate of the batch that is being trained on
    seed: int | None = None  # with one, the random draws of an epoch (dropout, mixing) follow from (seed, epoch)
    force_resume = False  # True: go on from checkpoints of other settings, with those of now
    stage = "before training"  # what is being done, for the message that a stopped run leaves
    kept_epoch = 0  # the epoch after which the newest checkpoint was saved
    part_weight = 1.0  # of several processes, what this one's part of the batch counts; 1 is the mean

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
        if world_size() > 1 and optim is not None:
            optim.register_step_pre_hook(self._check_averaged)

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
            raise self._diverged("Loss is infinite or NaN!")

    def check_losses(self, figures: dict[str, Any] | None) -> None:
        """:meth:`detect_anomaly` for what a step reports, as not every method calls it; shares may be of nothing."""
        figures = figures or {}
        # Beside a loss, the parts of it may be means over nothing.
        for name in ["loss"] if "loss" in figures else [name for name in figures if "loss" in name]:
            self.detect_anomaly(torch.as_tensor(figures[name]))

    def _diverged(self, what: str) -> NonFiniteLoss:
        """The error that says when it happened, what is safe, and what may help."""
        when = f"epoch {self.epoch + 1}"
        if self.batch_rate is not None:
            when += f", batch {self.batch_idx + 1} of {self.num_batches}, at a learning rate of {self.batch_rate:.4g}"
        saved = (newest(Path(getattr(self, "output_dir", ""), name)) for name in self.get_model_names())
        good = ", ".join(str(path) for path in saved if path and path.is_file())
        first = good and self.kept_epoch == self.epoch and not getattr(self, "batch_idx", 0)
        suspect = " (no loss has been computed with it: its last step may be what diverged)" if first else ""
        return NonFiniteLoss(
            f"{what} It happened in {when}. The last good checkpoint: {good or 'none was saved yet'}{suspect}. A "
            "smaller OPTIM.LR, a longer warm-up (OPTIM.WARMUP_EPOCH) or fp32 may help, in another output directory"
            f"{', or from that checkpoint on with --force-resume' if good else ''}"
        )

    def model_zero_grad(self, names: str | list[str] | None = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: torch.Tensor) -> None:
        """The gradients of a loss which is a mean over the batch: of the whole batch, where each of several processes
        has a part. They are averaged here, not by a wrapper, so that a trainer may use any part of its model."""
        if world_size() == 1:
            self.detect_anomaly(loss)
        else:
            loss = self.part_weight * loss
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if world_size() > 1:
            trained = (p for model in self._models.values() for p in model.parameters() if p.requires_grad)
            self.detect_anomaly(average_gradients(trained, loss))

    def _check_averaged(self, optim: torch.optim.Optimizer, *_) -> None:
        """Raise :class:`UserError` where an optimizer would step by the gradients of one of several processes."""
        if not all(are_averaged(group["params"]) for group in optim.param_groups):
            why = "it steps an optimizer by gradients that model_backward has not averaged"
            raise UserError(f"{type(self).__name__} does not run in several processes: {why}. Start it with python")

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
        """Save every registered model after ``epoch`` (counted from 0; the checkpoint counts epochs done).

        Raises:
            NonFiniteLoss: a parameter is infinite or NaN; nothing is saved.
        """
        from_first(lambda: self._save(epoch, directory, val_result, is_best=is_best, model_name=model_name))
        self.kept_epoch = epoch + 1

    def _save(self, epoch: int, directory: str, val_result: float | None, **names) -> None:
        for name in self.get_model_names():
            for key, parameter in self._models[name].named_parameters():
                if not torch.isfinite(parameter).all():
                    raise self._diverged(f"{key} in {name} is infinite or NaN after the last update!")
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": optim.state_dict() if optim is not None else None,
                "scheduler": sched.state_dict() if sched is not None else None,
                "val_result": val_result,
                **self.run_state(),
            }
            if self.scaler is not None and self.scaler.is_enabled():
                state["scaler"] = self.scaler.state_dict()
            save_checkpoint(state, Path(directory, name), **names)

    def run_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside a model, so that a resumed run goes on as if it had never stopped."""
        return {"random": random_states()}

    def resume_run_state(self, checkpoint: dict[str, Any]) -> None:
        """Take over what :meth:`run_state` gave; checkpoints of others do not have it."""
        if "random" in checkpoint:
            restore_random_states(checkpoint["random"])

    def resume_model_if_exist(self, directory: str) -> int:
        """Continue from the newest checkpoints in ``directory``; returns the epoch to start at, 0 if there are none."""
        names = self.get_model_names()
        if not (paths := in_step(Path(directory, name) for name in names)):
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        for name, path in zip(names, paths, strict=True):
            parts = self._models[name], self._optims[name], self._scheds[name]
            checkpoint = resume_from_file(path, *parts, self.scaler, self.force_resume)
        try:
            self.resume_run_state(checkpoint)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} is damaged: {error!r}") from error
        self.kept_epoch = checkpoint["epoch"]
        return self.kept_epoch

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
        if self._writer is None and is_first():
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
        same_as_first(self._models.values())
        for self.epoch in range(self.start_epoch, self.max_epoch):
            for loader in (getattr(self, "train_loader_x", None), getattr(self, "train_loader_u", None)):
                if hasattr(loader, "epoch"):
                    loader.epoch = self.epoch
            if self.seed is not None:
                set_random_seed(derive_seed(self.seed, self.epoch, *([rank()] if rank() else [])))
            self.stage = f"in epoch {self.epoch + 1} of {self.max_epoch}"
            self.before_epoch()
            self.run_epoch()
            same_as_first(self._models.values())  # running means of its part of the batches, say
            self.after_epoch()
        self.stage = AFTER_TRAINING
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
