"""Learning-rate schedules: the rate is a function of the epoch (or step) alone, so a resumed run follows the same
curve. And Dassl's warm-ups, which stand before a schedule of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from yacs.config import CfgNode

from dassl.utils import UserError, check_availability, tolist_if_not


def build_lr_scheduler(optimizer: torch.optim.Optimizer, optim_cfg: CfgNode, per_epoch: int = 1) -> LambdaLR:
    """The schedule that OPTIM.LR_SCHEDULER names (cosine, single_step, multi_step), stepped once an epoch, after a
    warm-up of OPTIM.WARMUP_EPOCH epochs (WARMUP_TYPE constant or linear). With ``per_epoch``, it is stepped that many
    times an epoch, and follows the curve in between.

    Raises:
        UserError: unknown schedule or warm-up, or steps that are no epochs.
    """
    check_availability(optim_cfg.LR_SCHEDULER, ("cosine", "single_step", "multi_step"), "schedule OPTIM.LR_SCHEDULER")
    check_availability(optim_cfg.WARMUP_TYPE, ("constant", "linear"), "OPTIM.WARMUP_TYPE")
    if not (steps := tolist_if_not(optim_cfg.STEPSIZE)) or not all(isinstance(step, int) for step in steps):
        raise UserError(f"OPTIM.STEPSIZE is {optim_cfg.STEPSIZE}; it must be epochs, such as (10,)")
    return LambdaLR(
        optimizer, [partial(_lr_factor, optim_cfg, group["lr"], per_epoch) for group in optimizer.param_groups]
    )


def _lr_factor(c: CfgNode, base_lr: float, per_epoch: int, step: int) -> float:
    """The rate of a step (counted from 0; an epoch has ``per_epoch``) as a share of ``base_lr``."""
    epoch = step / per_epoch
    decay = _decay_factor(c)
    warmup = max(c.WARMUP_EPOCH, 0)
    if epoch < warmup:
        return _warmup_lr(c, base_lr, epoch) / base_lr if base_lr else 0.0
    if c.WARMUP_RECOUNT:
        return decay(epoch - warmup)
    # Dassl's rule: the rate starts from the base rate after the warm-up and follows the curve's remaining shape.
    return decay(epoch) / (decay(warmup) or 1.0)


def _warmup_lr(c: CfgNode, base_lr: float, epoch: float) -> float:
    if c.WARMUP_TYPE == "constant":
        return c.WARMUP_CONS_LR
    return c.WARMUP_MIN_LR if epoch == 0 else base_lr * epoch / c.WARMUP_EPOCH


def _decay_factor(c: CfgNode) -> Callable[[float], float]:
    """The schedule without its warm-up: epoch -> share of the base rate."""
    if c.LR_SCHEDULER == "cosine":
        return lambda epoch: (1 + math.cos(math.pi * epoch / c.MAX_EPOCH)) / 2
    steps = tolist_if_not(c.STEPSIZE)
    if c.LR_SCHEDULER == "single_step":
        step = steps[-1] if steps[-1] > 0 else c.MAX_EPOCH
        return lambda epoch: c.GAMMA ** (epoch // step)
    return lambda epoch: c.GAMMA ** sum(epoch >= step for step in steps)


class _WarmupScheduler(LRScheduler):
    """A warm-up before another schedule, for code of the field that builds one by hand: ``successor`` begins at its
    first rate after ``warmup_epoch`` epochs. Both states are saved, so a resumed run follows the same curve."""

    def __init__(self, optimizer, successor: LRScheduler, warmup_epoch: int, last_epoch: int = -1):
        self.successor = successor
        self.warmup_epoch = max(warmup_epoch, 0)
        super().__init__(optimizer, last_epoch)

    def step(self) -> None:
        if self.last_epoch < self.warmup_epoch:
            super().step()
        else:
            self.successor.step()
            self._last_lr = self.successor.get_last_lr()

    def get_lr(self) -> list[float]:
        return self.successor.get_last_lr() if self.last_epoch >= self.warmup_epoch else self.warmup_rates()

    def warmup_rates(self) -> list[float]:
        """The rate of each parameter group in the epoch ``last_epoch`` of the warm-up."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        return {**super().state_dict(), "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        self.successor.load_state_dict(state_dict["successor"])
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "successor"})


class ConstantWarmupScheduler(_WarmupScheduler):
    """Warms up at the rate ``cons_lr``."""

    def __init__(self, optimizer, successor: LRScheduler, warmup_epoch: int, cons_lr: float, last_epoch: int = -1):
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_rates(self) -> list[float]:
        return [self.cons_lr for _ in self.base_lrs]


class LinearWarmupScheduler(_WarmupScheduler):
    """Warms up from ``min_lr`` in the first epoch, then in equal steps to the base rate."""

    def __init__(self, optimizer, successor: LRScheduler, warmup_epoch: int, min_lr: float, last_epoch: int = -1):
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_rates(self) -> list[float]:
        if self.last_epoch == 0:
            return [self.min_lr for _ in self.base_lrs]
        return [lr * self.last_epoch / self.warmup_epoch for lr in self.base_lrs]
