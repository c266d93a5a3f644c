"""Optimizers by name, from the OPTIM node of a config."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.utils import UserError, check_availability, tolist_if_not


def build_optimizer(
    model: nn.Module | Iterable, optim_cfg: CfgNode, param_groups: list | None = None
) -> torch.optim.Optimizer:
    """The optimizer that ``optim_cfg.NAME`` names: sgd, adam, amsgrad, adamw, radam or rmsprop.

    Args:
        model: a module, or its parameters or parameter groups.
        param_groups: used instead of the model's parameters if given.

    Raises:
        UserError: unknown name, values that PyTorch refuses, or STAGED_LR without layers to apply it to.
    """
    c = optim_cfg
    betas = (c.ADAM_BETA1, c.ADAM_BETA2)
    optimizers = {
        "sgd": partial(torch.optim.SGD, momentum=c.MOMENTUM, dampening=c.SGD_DAMPNING, nesterov=c.SGD_NESTEROV),
        "adam": partial(torch.optim.Adam, betas=betas),
        "amsgrad": partial(torch.optim.Adam, betas=betas, amsgrad=True),
        "adamw": partial(torch.optim.AdamW, betas=betas),
        "radam": partial(torch.optim.RAdam, betas=betas),
        "rmsprop": partial(torch.optim.RMSprop, momentum=c.MOMENTUM, alpha=c.RMSPROP_ALPHA),
    }
    check_availability(c.NAME, optimizers, "optimizer OPTIM.NAME")
    if param_groups is None:
        param_groups = _staged_param_groups(model, c) if c.STAGED_LR else model
        param_groups = param_groups.parameters() if isinstance(param_groups, nn.Module) else param_groups
    try:
        return optimizers[c.NAME](param_groups, lr=c.LR, weight_decay=c.WEIGHT_DECAY)
    except ValueError as error:
        raise UserError(f"the OPTIM keys do not suit {c.NAME}: {error}") from error


def _staged_param_groups(model: nn.Module, c: CfgNode) -> list[dict]:
    """New layers learn at LR, all others at LR * BASE_LR_MULT."""
    new_layers = tolist_if_not(c.NEW_LAYERS)
    children = dict(model.named_children())
    if not new_layers or not set(new_layers) <= set(children):
        raise UserError(f"OPTIM.STAGED_LR needs OPTIM.NEW_LAYERS to name some of {[*children]}; got {new_layers}")
    new = [parameter for name in children if name in new_layers for parameter in children[name].parameters()]
    new_ids = set(map(id, new))  # tensors compare by value
    others = [parameter for parameter in model.parameters() if id(parameter) not in new_ids]
    return [{"params": others, "lr": c.LR * c.BASE_LR_MULT}, {"params": new}]
