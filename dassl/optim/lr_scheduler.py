"""Learning-rate schedules whose rate is a function of the epoch (or step) alone, so that a resumed run follows the same
curve; and Dassl's warm-up schedulers, which precede a schedule of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from yacs.config import CfgNode

from dassl.utils import UserError, check_availability, tolist_if_not


def build_lr_scheduler(optimizer: torch.optim.Optimizer, optim_cfg: CfgNode, per_epoch: int = 1) -> LambdaLR:
    """Return the schedule that OPTIM.LR_SCHEDULER names: cosine, single_step or multi_step.

    It begins with a warm-up of OPTIM.WARMUP_EPOCH epochs (OPTIM.WARMUP_TYPE constant or linear). Call its ``step``
    ``per_epoch`` times an epoch. Unknown names, and an OPTIM.STEPSIZE that is no list of epochs, raise UserError.
    """
    check_availability(optim_cfg.LR_SCHEDULER, ("cosine", "single_step", "multi_step"), "schedule OPTIM.LR_SCHEDULER")
    check_availability(optim_cfg.WARMUP_TYPE, ("constant", "linear"), "OPTIM.WARMUP_TYPE")
    if not (steps := tolist_if_not(optim_cfg.STEPSIZE)) or not all(isinstance(step, int) for step in steps):
        raise UserError(f"OPTIM.STEPSIZE is {optim_cfg.STEPSIZE}; it must be epochs, such as (10,)")
    return LambdaLR(
        optimizer, [partial(_lr_factor, optim_cfg, group["lr"], per_epoch) for group in optimizer.param_groups]
    )


def _lr_factor(c: CfgNode, base_lr: float, per_epoch: int, step: int) -> float:
    """Return the learning rate of a step, divided by ``base_lr``; steps count from 0, ``per_epoch`` in an epoch."""
    epoch = step / per_epoch
    decay = _decay_factor(c)
    warmup = max(c.WARMUP_EPOCH, 0)
    if epoch < warmup:
        return _warmup_lr(c, base_lr, epoch) / base_lr if base_lr else 0.0
    if c.WARMUP_RECOUNT:
        return decay(epoch - warmup)
    # As in Dassl, the rate after the warm-up is the base rate, and follows the rest of the curve from there.
    return decay(epoch) / (decay(warmup) or 1.0)


def _warmup_lr(c: CfgNode, base_lr: float, epoch: float) -> float:
    """Return the warm-up's learning rate at ``epoch`` (counted from 0, may be fractional) for the OPTIM node ``c``."""
    if c.WARMUP_TYPE == "constant":
        return c.WARMUP_CONS_LR
    return c.WARMUP_MIN_LR if epoch == 0 else base_lr * epoch / c.WARMUP_EPOCH


def _decay_factor(c: CfgNode) -> Callable[[float], float]:
    """Return the OPTIM node's schedule without warm-up: a function from the epoch to the rate / the base rate."""
    if c.LR_SCHEDULER == "cosine":
        return lambda epoch: (1 + math.cos(math.pi * epoch / c.MAX_EPOCH)) / 2
    steps = tolist_if_not(c.STEPSIZE)
    if c.LR_SCHEDULER == "single_step":
        step = steps[-1] if steps[-1] > 0 else c.MAX_EPOCH
        return lambda epoch: c.GAMMA ** (epoch // step)
    return lambda epoch: c.GAMMA ** sum(epoch >= step for step in steps)


class _WarmupScheduler(LRScheduler):
    """A warm-up of ``warmup_epoch`` epochs before the schedule ``successor``, which starts at its first rate.

    Third-party trainers build it themselves. Its state includes the successor's.
    """

    def __init__(self, optimizer, successor: LRScheduler, warmup_epoch: int, last_epoch: int = -1):
        self.successor = successor
        self.warmup_epoch = max(warmup_epoch, 0)
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: int | None = None) -> None:
        """Set the rates of the next epoch (or of ``epoch``): those of the warm-up, or of the successor after it."""
        if self.last_epoch < self.warmup_epoch:
            super().step(epoch)
        else:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the rate of each parameter group in the current epoch."""
        return self.successor.get_last_lr() if self.last_epoch >= self.warmup_epoch else self.warmup_rates()

    def warmup_rates(self) -> list[float | torch.Tensor]:
        """Return the rate of each parameter group in the epoch ``last_epoch`` of the warm-up."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """Return the state of the warm-up, and that of the successor as ``successor``."""
        return {**super().state_dict(), "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what ``state_dict`` returned."""
        self.successor.load_state_dict(state_dict["successor"])
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "successor"})


class ConstantWarmupScheduler(_WarmupScheduler):
    """A warm-up at the constant rate ``cons_lr``."""

    def __init__(self, optimizer, successor: LRScheduler, warmup_epoch: int, cons_lr: float, last_epoch: int = -1):
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_rates(self) -> list[float | torch.Tensor]:
        """Return ``cons_lr`` for each parameter group."""
        return [self.cons_lr for _ in self.base_lrs]


class LinearWarmupScheduler(_WarmupScheduler):
    """A warm-up at the rate ``min_lr`` in the first epoch, then in equal steps up to the base rate."""

    def __init__(self, optimizer, successor: LRScheduler, warmup_epoch: int, min_lr: float, last_epoch: int = -1):
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_rates(self) -> list[float | torch.Tensor]:
        """Return for each group ``min_lr`` in epoch 0, then its base rate * ``last_epoch`` / ``warmup_epoch``."""
        if self.last_epoch == 0:
            return [self.min_lr for _ in self.base_lrs]
        return [lr * self.last_epoch / self.warmup_epoch for lr in self.base_lrs]
