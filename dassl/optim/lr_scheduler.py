"""Learning-rate schedules: the rate is a function of the epoch alone, so a resumed run follows the same curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR
from yacs.config import CfgNode

from dassl.utils import UserError, check_availability

SCHEDULES = ("cosine", "single_step", "multi_step")
WARMUPS = ("constant", "linear")


def build_lr_scheduler(optimizer: torch.optim.Optimizer, optim_cfg: CfgNode) -> LambdaLR:
    """The schedule that OPTIM.LR_SCHEDULER names (cosine, single_step, multi_step), stepped once an epoch, after a
    warm-up of OPTIM.WARMUP_EPOCH epochs (WARMUP_TYPE constant or linear).

    Raises:
        UserError: unknown schedule or warm-up, or steps that are no epochs.
    """
    check_availability(optim_cfg.LR_SCHEDULER, SCHEDULES, "schedule OPTIM.LR_SCHEDULER")
    check_availability(optim_cfg.WARMUP_TYPE, WARMUPS, "OPTIM.WARMUP_TYPE")
    if not (steps := _steps(optim_cfg)) or not all(isinstance(step, int) for step in steps):
        raise UserError(f"OPTIM.STEPSIZE is {optim_cfg.STEPSIZE}; it must be epochs, such as (10,)")
    return LambdaLR(optimizer, [partial(_rate, optim_cfg, group["lr"]) for group in optimizer.param_groups])


def _rate(c: CfgNode, base_lr: float, epoch: int) -> float:
    """The rate of an epoch (counted from 0) as a share of ``base_lr``."""
    decay = _decay(c)
    warmup = max(c.WARMUP_EPOCH, 0)
    if epoch < warmup:
        return _warmup(c, base_lr, epoch) / base_lr if base_lr else 0.0
    if c.WARMUP_RECOUNT:
        return decay(epoch - warmup)
    # Dassl's rule: the rate starts from the base rate after the warm-up and follows the curve's remaining shape.
    return decay(epoch) / (decay(warmup) or 1.0)


def _warmup(c: CfgNode, base_lr: float, epoch: int) -> float:
    if c.WARMUP_TYPE == "constant":
        return c.WARMUP_CONS_LR
    return c.WARMUP_MIN_LR if epoch == 0 else base_lr * epoch / c.WARMUP_EPOCH


def _decay(c: CfgNode) -> Callable[[int], float]:
    """The schedule without its warm-up: epoch -> share of the base rate."""
    if c.LR_SCHEDULER == "cosine":
        return lambda epoch: (1 + math.cos(math.pi * epoch / c.MAX_EPOCH)) / 2
    steps = _steps(c)
    if c.LR_SCHEDULER == "single_step":
        step = steps[-1] if steps[-1] > 0 else c.MAX_EPOCH
        return lambda epoch: c.GAMMA ** (epoch // step)
    return lambda epoch: c.GAMMA ** sum(epoch >= step for step in steps)


def _steps(c: CfgNode) -> list[int]:
    return [c.STEPSIZE] if isinstance(c.STEPSIZE, int) else list(c.STEPSIZE)
