"""Building of optimizers from the OPTIM node of a config."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.utils import UserError, check_availability, tolist_if_not


def build_optimizer(
    model: nn.Module | Iterable, optim_cfg: CfgNode, param_groups: list | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer that ``optim_cfg.NAME`` names: sgd, adam, amsgrad, adamw, radam or rmsprop.

    Args:
        model: a module, or its parameters or parameter groups.
        param_groups: parameters or groups to train in place of the model's.

    Raises:
        UserError: the name is unknown, PyTorch refuses a value, or STAGED_LR has no layers to apply to.
    """
    c = optim_cfg
    betas = (c.ADAM_BETA1, c.ADAM_BETA2)
    optimizers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": partial(torch.optim.SGD, momentum=c.MOMENTUM, dampening=c.SGD_DAMPNING, nesterov=c.SGD_NESTEROV),
        "adam": partial(torch.optim.Adam, betas=betas),
        "amsgrad": partial(torch.optim.Adam, betas=betas, amsgrad=True),
        "adamw": partial(torch.optim.AdamW, betas=betas),
        "radam": partial(torch.optim.RAdam, betas=betas),
        "rmsprop": partial(torch.optim.RMSprop, momentum=c.MOMENTUM, alpha=c.RMSPROP_ALPHA),
    }
    check_availability(c.NAME, optimizers, "optimizer OPTIM.NAME")
    params: Iterable = model.parameters() if isinstance(model, nn.Module) else model
    if param_groups is not None:
        params = param_groups
    elif c.STAGED_LR:
        assert isinstance(model, nn.Module)  # STAGED_LR chooses layers by their names
        params = _staged_param_groups(model, c)
    try:
        return optimizers[c.NAME](params, lr=c.LR, weight_decay=c.WEIGHT_DECAY)
    except ValueError as error:
        raise UserError(f"the OPTIM keys do not suit {c.NAME}: {error}") from error


def _staged_param_groups(model: nn.Module, c: CfgNode) -> list[dict]:
    """Return two parameter groups: the old layers with rate LR * BASE_LR_MULT, then NEW_LAYERS with the default, LR.

    NEW_LAYERS names children of ``model``; ``UserError`` if it is empty or has another name.
    """
    new_layers = tolist_if_not(c.NEW_LAYERS)
    children = dict(model.named_children())
    if not new_layers or not set(new_layers) <= set(children):
        raise UserError(f"OPTIM.STAGED_LR needs OPTIM.NEW_LAYERS to name some of {[*children]}; got {new_layers}")
    new = [parameter for name in children if name in new_layers for parameter in children[name].parameters()]
    new_ids = set(map(id, new))  # tensors compare by value
    base = [parameter for parameter in model.parameters() if id(parameter) not in new_ids]
    return [{"params": base, "lr": c.LR * c.BASE_LR_MULT}, {"params": new}]
